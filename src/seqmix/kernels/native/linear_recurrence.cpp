// The gated linear recurrence and its gradients, for one instruction set. See linear_recurrence.h.
//
// Every channel is a chain of its own along time, so several vectors of channels run side by side.

#include "linear_recurrence.h"

#include <algorithm>

#include "vectors.h"

namespace {

constexpr int WIDE = 4;

struct Whole {
    Vector operator()(const float* from) const { return load(from); }
    void operator()(float* to, Vector value) const { store(to, value); }
};

struct Some {
    int count;
    Vector operator()(const float* from) const { return load_some(from, count); }
    void operator()(float* to, Vector value) const { store_some(to, value, count); }
};

inline const float* at(const SeqmixChannels& channels, int64_t row, int64_t t) {
    return channels.data + row * channels.batch + t * channels.time;
}

inline bool begins(const SeqmixLinearRecurrence& call, int64_t row, int64_t t) {
    if (!call.runs) return false;
    const int64_t* runs = call.runs + row * call.time;
    return t ? runs[t] != runs[t - 1] : runs[0] != 0;
}

template <int VECTORS, typename Access>
void forward(const SeqmixLinearRecurrence& call, int64_t row, int64_t c, const Access& access) {
    Vector h[VECTORS];
    for (int v = 0; v < VECTORS; ++v) h[v] = access(call.state + row * call.dim + c + v * LANES);
    for (int64_t t = 0; t < call.time; ++t) {
        const float* a = at(call.a, row, t) + c;
        const float* b = at(call.b, row, t) + c;
        float* to = call.h + (row * call.time + t) * call.dim + c;
        const bool first = begins(call, row, t);
        for (int v = 0; v < VECTORS; ++v) {
            const Vector kept = first ? Vector{} : access(a + v * LANES) * h[v];
            h[v] = kept + access(b + v * LANES);
            access(to + v * LANES, h[v]);
        }
    }
}

template <int VECTORS, typename Access>
void backward(const SeqmixLinearRecurrence& call, int64_t row, int64_t c, const Access& access) {
    Vector carried[VECTORS];
    float* grad_state = call.grad_state + row * call.dim + c;
    for (int v = 0; v < VECTORS; ++v) carried[v] = access(grad_state + v * LANES);
    for (int64_t t = call.time - 1; t >= 0; --t) {
        const int64_t place = (row * call.time + t) * call.dim + c;
        const float* a = at(call.a, row, t) + c;
        const float* grad = at(call.grad_h, row, t) + c;
        const float* before = t ? call.h + place - call.dim : call.state + row * call.dim + c;
        const bool first = begins(call, row, t);
        for (int v = 0; v < VECTORS; ++v) {
            const Vector total = access(grad + v * LANES) + carried[v];
            access(call.grad_b + place + v * LANES, total);
            access(call.grad_a + place + v * LANES, first ? Vector{} : total * access(before + v * LANES));
            carried[v] = first ? Vector{} : total * access(a + v * LANES);
        }
    }
    for (int v = 0; v < VECTORS; ++v) access(grad_state + v * LANES, carried[v]);
}

template <typename Work, typename Rest>
void for_all_channels(const SeqmixLinearRecurrence& call, const Work& wide, const Rest& rest) {
    const int64_t blocks = (call.dim + WIDE * LANES - 1) / (WIDE * LANES), tasks = call.batch * blocks;
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t row = task / blocks, first = task % blocks * WIDE * LANES;
        if (first + WIDE * LANES <= call.dim) {
            wide(row, first);
            continue;
        }
        for (int64_t c = first; c < call.dim; c += LANES) rest(row, c, int(std::min<int64_t>(LANES, call.dim - c)));
    }
}

}  // namespace

EXPORT void KERNEL(seqmix_linear_recurrence)(const SeqmixLinearRecurrence* call) {
    for_all_channels(
        *call, [&](int64_t row, int64_t c) { forward<WIDE>(*call, row, c, Whole{}); },
        [&](int64_t row, int64_t c, int count) { forward<1>(*call, row, c, Some{count}); });
}

EXPORT void KERNEL(seqmix_linear_recurrence_backward)(const SeqmixLinearRecurrence* call) {
    for_all_channels(
        *call, [&](int64_t row, int64_t c) { backward<WIDE>(*call, row, c, Whole{}); },
        [&](int64_t row, int64_t c, int count) { backward<1>(*call, row, c, Some{count}); });
}
