// One more position of a recurrence, for one instruction set. See recurrent_steps.h.
//
// A step reads and writes the state once; it is far too short to be shared between threads.

#include "recurrent_steps.h"

#include <algorithm>
#include <vector>

#include "vector_math.h"

namespace {

// Calls work(first, count) for whole vectors of [0, size) and what is left.
template <typename Work>
inline __attribute__((always_inline)) void for_vectors(int64_t size, const Work& work) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) work(i, LANES);
    if (i < size) work(i, int(size - i));
}

inline Vector read(const float* from, int count) { return count == LANES ? load(from) : load_some(from, count); }

inline void write(float* to, Vector value, int count) {
    if (count == LANES)
        store(to, value);
    else
        store_some(to, value, count);
}

inline float element(const SeqmixRow& row, int64_t batch, int64_t index) {
    return row.data[batch * row.batch + index * row.step];
}

inline float scalar_softplus(float x) { return softplus(broadcast(x))[0]; }

void conv_step(const SeqmixConvStep& call) {
    for (int64_t row = 0; row < call.batch; ++row) {
        float* y = call.y + row * call.dim;
        for (int64_t c = 0; c < call.dim; ++c) {
            float* state = call.state + (row * call.dim + c) * call.length;
            const float* past = state + call.length - (call.kernel - 1);
            const float* weight = call.weight + c * call.kernel;
            const float x = element(call.x, row, c);
            float sum = (call.bias ? call.bias[c] : 0.0f) + weight[call.kernel - 1] * x;
            for (int64_t k = 0; k + 1 < call.kernel; ++k) sum += weight[k] * past[k];
            y[c] = sum;
            for (int64_t i = 0; i + 1 < call.length; ++i) state[i] = state[i + 1];
            if (call.length) state[call.length - 1] = x;
        }
        if (call.use_silu)
            for_vectors(call.dim, [&](int64_t c, int count) {
                const Vector sum = read(y + c, count);
                write(y + c, sum * sigmoid(sum), count);
            });
    }
}

void selective_step(const SeqmixSelectiveStep& call) {
    std::vector<float> steps(call.dim), gates(call.z.data ? call.dim : 0);
    for (int64_t row = 0; row < call.batch; ++row) {
        for (int64_t c = 0; c < call.dim; ++c)
            steps[c] = element(call.dt, row, c) + (call.dt_bias ? call.dt_bias[c] : 0.0f);
        if (call.use_softplus)
            for_vectors(call.dim, [&](int64_t c, int count) {
                write(&steps[c], softplus(read(&steps[c], count)), count);
            });
        if (call.z.data) {
            for (int64_t c = 0; c < call.dim; ++c) gates[c] = element(call.z, row, c);
            for_vectors(call.dim, [&](int64_t c, int count) {
                const Vector z = read(&gates[c], count);
                write(&gates[c], z * sigmoid(z), count);
            });
        }
        const float* B = call.B.data + row * call.B.batch;
        const float* C = call.C.data + row * call.C.batch;
        for (int64_t c = 0; c < call.dim; ++c) {
            float* state = call.state + (row * call.dim + c) * call.size;
            const float* A = call.A + c * call.size;
            const float x = element(call.x, row, c), s = steps[c], u = s * x;
            Vector sum{};
            for_vectors(call.size, [&](int64_t n, int count) {
                const Vector h = exponential(s * read(A + n, count)) * read(state + n, count) + u * read(B + n, count);
                write(state + n, h, count);
                sum += h * read(C + n, count);
            });
            const float y = sum_of(sum) + (call.D ? call.D[c] * x : 0.0f);
            call.y[row * call.dim + c] = call.z.data ? y * gates[c] : y;
        }
    }
}

void state_space_step(const SeqmixStateSpaceStep& call) {
    const int64_t share = call.heads / call.groups;
    for (int64_t row = 0; row < call.batch; ++row)
        for (int64_t head = 0; head < call.heads; ++head) {
            float s = element(call.dt, row, head);
            if (call.dt_bias.data) s += element(call.dt_bias, 0, head);
            if (call.use_softplus) s = scalar_softplus(s);
            const float decay = exponential(broadcast(s * element(call.A, 0, head)))[0];
            const float D = call.D.data ? element(call.D, 0, head) : 0.0f;
            const float* B = call.B.data + row * call.B.batch + head / share * call.size;
            const float* C = call.C.data + row * call.C.batch + head / share * call.size;
            const int64_t first = (row * call.heads + head) * call.width;
            for (int64_t p = 0; p < call.width; ++p) {
                float* state = call.state + (first + p) * call.size;
                const float x = call.x.data[row * call.x.batch + head * call.width + p], u = s * x;
                Vector sum{};
                for_vectors(call.size, [&](int64_t n, int count) {
                    const Vector h = decay * read(state + n, count) + u * read(B + n, count);
                    write(state + n, h, count);
                    sum += h * read(C + n, count);
                });
                call.y[first + p] = sum_of(sum) + D * x;
            }
        }
}

}  // namespace

EXPORT void KERNEL(seqmix_conv_step)(const SeqmixConvStep* call) { conv_step(*call); }

EXPORT void KERNEL(seqmix_selective_step)(const SeqmixSelectiveStep* call) { selective_step(*call); }

EXPORT void KERNEL(seqmix_state_space_step)(const SeqmixStateSpaceStep* call) { state_space_step(*call); }
