// The selective scan and its gradients, for one instruction set. See selective_scan.h.
//
// Vectors run over channels. A chunk of time is read for all channels before the next, so that every cache line is
// used whole; between chunks the states rest in memory. The backward goes through the chunks from the last to the
// first and computes the states inside each once more from the kept one before it.

#include "selective_scan.h"

#include <algorithm>
#include <vector>

#include "vector_math.h"

namespace {

struct Whole {
    Vector operator()(const float* from) const { return load(from); }
    void operator()(float* to, Vector value) const { store(to, value); }
};

struct Some {
    int count;
    Vector operator()(const float* from) const { return load_some(from, count); }
    void operator()(float* to, Vector value) const { store_some(to, value, count); }
};

// Neighbouring channels [first, last) of one row, which one thread works on.
struct Stretch {
    int64_t row, part, first, last;
};

int64_t parts_of(const SeqmixSelectiveScan& scan) {
    const int64_t rows = std::max<int64_t>(1, scan.batch), wanted = (scan.threads + rows - 1) / rows;
    return std::max<int64_t>(1, std::min(wanted, scan.dim / LANES));
}

Stretch stretch_of(const SeqmixSelectiveScan& scan, int64_t index, int64_t parts) {
    const int64_t part = index % parts, vectors = (scan.dim + LANES - 1) / LANES;
    const int64_t first = vectors * part / parts * LANES;
    return {index / parts, part, first, std::min(scan.dim, vectors * (part + 1) / parts * LANES)};
}

inline const float* at(const SeqmixSequence& sequence, int64_t row, int64_t t) {
    return sequence.data + row * sequence.batch + t * sequence.time;
}

// Whether the state before position t is of another document.
inline bool begins(const SeqmixSelectiveScan& scan, int64_t row, int64_t t) {
    if (!scan.runs) return false;
    const int64_t* runs = scan.runs + row * scan.time;
    return t ? runs[t] != runs[t - 1] : runs[0] != 0;
}

struct Step {
    Vector raw, size;
};

template <typename Load>
inline Step step_of(const SeqmixSelectiveScan& scan, const float* dt, int64_t channel, const Load& read) {
    Vector raw = read(dt + channel);
    if (scan.dt_bias) raw += read(scan.dt_bias + channel);
    return {raw, scan.use_softplus ? softplus(raw) : raw};
}

template <typename Load, typename Store>
void scan_chunk(
    const SeqmixSelectiveScan& scan, int64_t row, int64_t begin, int64_t end, int64_t c, const Load& read,
    const Store& write, float* state, Vector* h, Vector* A) {
    const int64_t size = scan.size;
    for (int64_t n = 0; n < size; ++n) {
        h[n] = read(state + n * scan.dim + c);
        A[n] = read(scan.A + n * scan.dim + c);
    }
    const Vector D = scan.D ? read(scan.D + c) : Vector{};
    for (int64_t t = begin; t < end; ++t) {
        const Vector x = read(at(scan.x, row, t) + c);
        const Vector s = step_of(scan, at(scan.dt, row, t), c, read).size;
        const Vector u = s * x;
        const float* B = at(scan.B, row, t);
        const float* C = at(scan.C, row, t);
        if (begins(scan, row, t)) std::fill_n(h, size, Vector{});
        Vector even = D * x, odd = Vector{};
        int64_t n = 0;
        for (; n + 1 < size; n += 2) {
            h[n] = exponential(s * A[n]) * h[n] + u * B[n];
            h[n + 1] = exponential(s * A[n + 1]) * h[n + 1] + u * B[n + 1];
            even += h[n] * C[n];
            odd += h[n + 1] * C[n + 1];
        }
        if (n < size) {
            h[n] = exponential(s * A[n]) * h[n] + u * B[n];
            even += h[n] * C[n];
        }
        Vector y = even + odd;
        if (scan.z.data) {
            const Vector z = read(at(scan.z, row, t) + c);
            y *= z * sigmoid(z);
        }
        write(scan.y + (row * scan.time + t) * scan.dim + c, y);
    }
    for (int64_t n = 0; n < size; ++n) write(state + n * scan.dim + c, h[n]);
}

void forward(const SeqmixSelectiveScan& scan) {
    const int64_t parts = parts_of(scan), tasks = scan.batch * parts;
    const int64_t chunks = (scan.time + scan.chunk - 1) / scan.chunk;
#pragma omp parallel num_threads(scan.threads) if (scan.threads > 1)
    {
        std::vector<Vector> h(scan.size), A(scan.size);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; ++task) {
            const Stretch stretch = stretch_of(scan, task, parts);
            const int64_t row = stretch.row, width = stretch.last - stretch.first;
            float* state = scan.final_state + row * scan.size * scan.dim;
            for (int64_t n = 0; n < scan.size; ++n) {
                const int64_t from = n * scan.dim + stretch.first;
                if (scan.state)
                    std::copy_n(scan.state + row * scan.size * scan.dim + from, width, state + from);
                else
                    std::fill_n(state + from, width, 0.0f);
            }
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                const int64_t begin = chunk * scan.chunk, end = std::min(begin + scan.chunk, scan.time);
                if (scan.kept)
                    for (int64_t n = 0; n < scan.size; ++n) {
                        const int64_t from = n * scan.dim + stretch.first;
                        float* kept = scan.kept + (row * chunks + chunk) * scan.size * scan.dim;
                        std::copy_n(state + from, width, kept + from);
                    }
                int64_t c = stretch.first;
                const Whole whole;
                for (; c + LANES <= stretch.last; c += LANES)
                    scan_chunk(scan, row, begin, end, c, whole, whole, state, h.data(), A.data());
                if (c < stretch.last) {
                    const Some some{int(stretch.last - c)};
                    scan_chunk(scan, row, begin, end, c, some, some, state, h.data(), A.data());
                }
            }
        }
    }
}

// What one thread needs to go back through a chunk of one vector of channels.
struct Scratch {
    std::vector<Vector> A, grad_h, grad_A;  // (size)
    std::vector<Vector> states;             // (chunk + 1, size): before each position, and after the last
    std::vector<Vector> decays;             // (chunk, size)
    std::vector<Vector> outputs, raws, steps;  // (chunk): y before its gate, dt + dt_bias, and the step sizes
    std::vector<Vector> grad_B, grad_C;     // (chunk, size), summed over the vectors of channels

    Scratch(int64_t chunk, int64_t size)
        : A(size), grad_h(size), grad_A(size), states((chunk + 1) * size), decays(chunk * size), outputs(chunk),
          raws(chunk), steps(chunk), grad_B(chunk * size), grad_C(chunk * size) {}
};

template <typename Load>
void states_of_chunk(
    const SeqmixSelectiveScan& scan, int64_t row, int64_t begin, int64_t end, int64_t c, const Load& read,
    const float* kept, Scratch& scratch) {
    const int64_t size = scan.size;
    const Vector D = scan.D ? read(scan.D + c) : Vector{};
    for (int64_t n = 0; n < size; ++n) {
        scratch.A[n] = read(scan.A + n * scan.dim + c);
        scratch.states[n] = read(kept + n * scan.dim + c);
    }
    for (int64_t t = begin; t < end; ++t) {
        const int64_t i = t - begin;
        const Vector x = read(at(scan.x, row, t) + c);
        const Step step = step_of(scan, at(scan.dt, row, t), c, read);
        const Vector u = step.size * x;
        const float* B = at(scan.B, row, t);
        const float* C = at(scan.C, row, t);
        const Vector* before = &scratch.states[i * size];
        Vector* after = &scratch.states[(i + 1) * size];
        Vector* decay = &scratch.decays[i * size];
        const bool first = begins(scan, row, t);
        Vector y = D * x;
        for (int64_t n = 0; n < size; ++n) {
            decay[n] = first ? Vector{} : exponential(step.size * scratch.A[n]);
            after[n] = decay[n] * before[n] + u * B[n];
            y += after[n] * C[n];
        }
        scratch.outputs[i] = y;
        scratch.raws[i] = step.raw;
        scratch.steps[i] = step.size;
    }
}

template <typename Load, typename Store>
void back_through_chunk(
    const SeqmixSelectiveScan& scan, int64_t row, int64_t begin, int64_t end, int64_t c, const Load& read,
    const Store& write, const float* kept, Scratch& scratch) {
    states_of_chunk(scan, row, begin, end, c, read, kept, scratch);
    const int64_t size = scan.size, dim = scan.dim;
    float* grad_state = scan.grad_state + row * size * dim + c;
    float* grad_A = scan.grad_A + row * size * dim + c;
    for (int64_t n = 0; n < size; ++n) {
        scratch.grad_h[n] = read(grad_state + n * dim);
        scratch.grad_A[n] = read(grad_A + n * dim);
    }
    const Vector D = scan.D ? read(scan.D + c) : Vector{};
    Vector grad_D = read(scan.grad_D + row * dim + c), grad_bias = read(scan.grad_dt_bias + row * dim + c);
    for (int64_t t = end - 1; t >= begin; --t) {
        const int64_t i = t - begin, place = (row * scan.time + t) * dim + c;
        const Vector x = read(at(scan.x, row, t) + c);
        Vector grad_y = read(at(scan.grad_y, row, t) + c);
        if (scan.z.data) {
            const Vector z = read(at(scan.z, row, t) + c), open = sigmoid(z);
            write(scan.grad_z + place, grad_y * scratch.outputs[i] * open * (1.0f + z * (1.0f - open)));
            grad_y *= z * open;
        }
        const Vector s = scratch.steps[i], u = s * x;
        const float* B = at(scan.B, row, t);
        const float* C = at(scan.C, row, t);
        const Vector* before = &scratch.states[i * size];
        const Vector* after = &scratch.states[(i + 1) * size];
        const Vector* decay = &scratch.decays[i * size];
        Vector* grad_B = &scratch.grad_B[i * size];
        Vector* grad_C = &scratch.grad_C[i * size];
        Vector grad_u = Vector{}, grad_s = Vector{};
        for (int64_t n = 0; n < size; ++n) {
            const Vector grad_h = scratch.grad_h[n] + grad_y * C[n];
            grad_C[n] += grad_y * after[n];
            grad_B[n] += grad_h * u;
            grad_u += grad_h * B[n];
            const Vector decayed = grad_h * decay[n];
            const Vector grad_exponent = decayed * before[n];
            grad_s += grad_exponent * scratch.A[n];
            scratch.grad_A[n] += grad_exponent * s;
            scratch.grad_h[n] = decayed;
        }
        grad_s += grad_u * x;
        grad_D += grad_y * x;
        if (scan.use_softplus) grad_s *= sigmoid(scratch.raws[i]);
        grad_bias += grad_s;
        write(scan.grad_x + place, grad_u * s + grad_y * D);
        write(scan.grad_dt + place, grad_s);
    }
    for (int64_t n = 0; n < size; ++n) {
        write(grad_state + n * dim, scratch.grad_h[n]);
        write(grad_A + n * dim, scratch.grad_A[n]);
    }
    write(scan.grad_D + row * dim + c, grad_D);
    write(scan.grad_dt_bias + row * dim + c, grad_bias);
}

// grad_A, grad_D and grad_dt_bias come in as zeros, grad_state as the gradient of the final state.
void backward(const SeqmixSelectiveScan& scan) {
    const int64_t parts = parts_of(scan), tasks = scan.batch * parts, size = scan.size;
    const int64_t chunks = (scan.time + scan.chunk - 1) / scan.chunk;
    const int64_t sums = scan.batch * scan.time * size;
    // The parts of a row's channels each have their own sums for B and C, added in order.
    std::vector<float> partial_B((parts - 1) * sums), partial_C((parts - 1) * sums);
#pragma omp parallel num_threads(scan.threads) if (scan.threads > 1)
    {
        Scratch scratch(scan.chunk, size);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; ++task) {
            const Stretch stretch = stretch_of(scan, task, parts);
            const int64_t row = stretch.row;
            float* grad_B = stretch.part ? partial_B.data() + (stretch.part - 1) * sums : scan.grad_B;
            float* grad_C = stretch.part ? partial_C.data() + (stretch.part - 1) * sums : scan.grad_C;
            for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
                const int64_t begin = chunk * scan.chunk, end = std::min(begin + scan.chunk, scan.time);
                const float* kept = scan.kept + (row * chunks + chunk) * size * scan.dim;
                std::fill(scratch.grad_B.begin(), scratch.grad_B.end(), Vector{});
                std::fill(scratch.grad_C.begin(), scratch.grad_C.end(), Vector{});
                int64_t c = stretch.first;
                const Whole whole;
                for (; c + LANES <= stretch.last; c += LANES)
                    back_through_chunk(scan, row, begin, end, c, whole, whole, kept, scratch);
                if (c < stretch.last) {
                    const Some some{int(stretch.last - c)};
                    back_through_chunk(scan, row, begin, end, c, some, some, kept, scratch);
                }
                const int64_t place = (row * scan.time + begin) * size;
                for (int64_t i = 0; i < (end - begin) * size; ++i) {
                    grad_B[place + i] = sum_of(scratch.grad_B[i]);
                    grad_C[place + i] = sum_of(scratch.grad_C[i]);
                }
            }
        }
        if (parts > 1) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < sums; ++i)
                for (int64_t part = 0; part + 1 < parts; ++part) {
                    scan.grad_B[i] += partial_B[part * sums + i];
                    scan.grad_C[i] += partial_C[part * sums + i];
                }
        }
    }
}

}  // namespace

EXPORT void KERNEL(seqmix_selective_scan)(const SeqmixSelectiveScan* scan) { forward(*scan); }

EXPORT void KERNEL(seqmix_selective_scan_backward)(const SeqmixSelectiveScan* scan) { backward(*scan); }
