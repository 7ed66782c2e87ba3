// A matrix times a vector, the weights in float32, bfloat16 or int8.
//
// Every weight is read once, so matrices lie in memory in the order in which they are read: panels of 16 outputs, input
// by input, which is one stream without jumps. Threads take panels.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "step_program.h"
#include "step_threads.h"
#include "vector_math.h"

namespace {

constexpr int PANEL = 16;
constexpr int HALF_PANEL = 8;
constexpr int64_t PREFETCHED_BYTES = 1024;

typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef int16_t Shorts __attribute__((vector_size(LANES * 2)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

inline Vector load(const int8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)
    const Ints wide = (Ints)_mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)bytes);
#else
    // Width doubled at a time, which compilers have instructions for: in one go it is done number by number.
    const Ints wide = __builtin_convertvector(__builtin_convertvector(bytes, Shorts), Ints);
#endif
    return __builtin_convertvector(wide, Vector);
}

inline float to_float(int8_t value) { return float(value); }

inline int64_t panels_of(int64_t width) { return (width + PANEL - 1) / PANEL; }

// 16 outputs: how many vectors they are, and how many inputs are taken at once so that 8 sums are under way.
constexpr int WIDE = PANEL / LANES;
constexpr int INPUTS = 8 / WIDE;

template <typename Weight>
inline void whole_panel(const Weight* weight, const float* x, int64_t k, Vector (&result)[WIDE]) {
    Vector sums[INPUTS][WIDE] = {};
    int64_t i = 0;
    for (; i + INPUTS <= k; i += INPUTS) {
#pragma GCC unroll 8
        for (int u = 0; u < INPUTS; ++u)
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; ++v)
                sums[u][v] += broadcast(x[i + u]) * load(weight + (i + u) * PANEL + v * LANES);
    }
    for (; i < k; ++i)
        for (int v = 0; v < WIDE; ++v) sums[0][v] += broadcast(x[i]) * load(weight + i * PANEL + v * LANES);
    for (int v = 0; v < WIDE; ++v) {
        result[v] = sums[0][v];
        for (int u = 1; u < INPUTS; ++u) result[v] += sums[u][v];
    }
}

// Scales, biases and results have room for whole panels.
inline void finish_outputs(const SeqmixStepOperation& op, int64_t first, Vector y) {
    if (op.scale) y *= load(op.scale + first);
    if (op.bias) y += load(op.bias + first);
    if (op.b) y += load(op.b + first);
    store(op.out + first, y);
}

// The last panel of up to 8 outputs.
template <typename Weight>
inline void half_panel(const Weight* weight, const float* x, int64_t k, float* sums) {
    constexpr int AT_ONCE = 4;
    float parts[AT_ONCE][HALF_PANEL] = {};
    int64_t i = 0;
    for (; i + AT_ONCE <= k; i += AT_ONCE)
        for (int u = 0; u < AT_ONCE; ++u)
            for (int j = 0; j < HALF_PANEL; ++j) parts[u][j] += x[i + u] * to_float(weight[(i + u) * HALF_PANEL + j]);
    for (; i < k; ++i)
        for (int j = 0; j < HALF_PANEL; ++j) parts[0][j] += x[i] * to_float(weight[i * HALF_PANEL + j]);
    for (int j = 0; j < HALF_PANEL; ++j) sums[j] = parts[0][j] + parts[1][j] + parts[2][j] + parts[3][j];
}

template <typename Weight>
void linear_as(const SeqmixStepOperation& op, int64_t thread, int64_t threads) {
    const int64_t whole = op.n / PANEL, rest = op.n % PANEL;
    const Share panels = share_of(whole + (rest > 0), thread, threads);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const Weight* weight = static_cast<const Weight*>(op.weight) + panel * PANEL * op.k;
        Vector result[WIDE];
        if (panel == whole && rest <= HALF_PANEL) {
            float sums[PANEL] = {};
            half_panel(weight, op.a, op.k, sums);
            for (int v = 0; v < WIDE; ++v) result[v] = load(sums + v * LANES);
        } else {
            whole_panel(weight, op.a, op.k, result);
        }
        for (int v = 0; v < WIDE; ++v) finish_outputs(op, panel * PANEL + v * LANES, result[v]);
    }
}

void linear(const SeqmixStepOperation& op, int64_t thread, int64_t threads) {
    if (op.type == SEQMIX_WEIGHT_INT8)
        linear_as<int8_t>(op, thread, threads);
    else if (op.type == SEQMIX_WEIGHT_BF16)
        linear_as<bfloat16>(op, thread, threads);
    else
        linear_as<float>(op, thread, threads);
}

// The beginning of what a thread reads next, while it waits.
void prefetch_linear(const SeqmixStepOperation& op, int64_t thread, int64_t threads) {
    const int64_t size = op.type == SEQMIX_WEIGHT_INT8 ? 1 : op.type == SEQMIX_WEIGHT_BF16 ? 2 : 4;
    const int64_t first = share_of(op.n / PANEL + (op.n % PANEL > 0), thread, threads).begin * PANEL;
    const char* weight = static_cast<const char*>(op.weight) + first * op.k * size;
    for (int64_t byte = 0; byte < PREFETCHED_BYTES; byte += 64) __builtin_prefetch(weight + byte);
}

}  // namespace
