// The arithmetic of one tile of a depthwise convolution: sums over taps, from and to small buffers.
//
// A tile is a block of channels (one cache line of floats) and several outputs that are one dilation apart, so that
// output i and tap k meet source i + k. Sources are packed into consecutive rows first: the distances between them
// in memory are often powers of two, which a cache holds few of. A source that is loaded once then serves as many
// products as registers hold (output, tap) pairs with its sum.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

constexpr int BLOCK = 16;               // channels of a tile
constexpr int VECTORS = BLOCK / LANES;  // that hold them
constexpr int TILE = 64;                // outputs of a tile
// Outputs and taps of one stretch of straight code. With few registers the weights are read from memory for every
// product, and the longer stretch pays.
constexpr int OUTPUTS = 8;
constexpr int TAPS = REGISTERS == 32 ? 8 : 16;

// sums[i] += sum over k < COUNT of weight[k] * source[i + k], for OUT outputs of one vector of channels.
template <int COUNT, int OUT>
inline __attribute__((always_inline)) void add_taps(Vector (&sums)[OUT], const float* weight, const float* source) {
    Vector w[COUNT];
#pragma GCC unroll 16
    for (int k = 0; k < COUNT; ++k) w[k] = load(weight + k * BLOCK);
#pragma GCC unroll 32
    for (int j = 0; j < OUT + COUNT - 1; ++j) {
        const Vector x = load(source + j * BLOCK);
#pragma GCC unroll 16
        for (int k = 0; k < COUNT; ++k)
            if (j - k >= 0 && j - k < OUT) sums[j - k] += x * w[k];
    }
}

template <int OUT>
inline __attribute__((always_inline)) void convolve_outputs(
    const float* weight, const float* bias, int64_t taps, const float* source, float* result) {
    Vector sums[OUT];
#pragma GCC unroll 16
    for (int i = 0; i < OUT; ++i) sums[i] = load(bias);
    int64_t k = 0;
    for (; k + TAPS <= taps; k += TAPS) add_taps<TAPS, OUT>(sums, weight + k * BLOCK, source + k * BLOCK);
    if (TAPS > 8 && k + 8 <= taps) {
        add_taps<8, OUT>(sums, weight + k * BLOCK, source + k * BLOCK);
        k += 8;
    }
    if (k + 4 <= taps) {
        add_taps<4, OUT>(sums, weight + k * BLOCK, source + k * BLOCK);
        k += 4;
    }
    if (k + 2 <= taps) {
        add_taps<2, OUT>(sums, weight + k * BLOCK, source + k * BLOCK);
        k += 2;
    }
    if (k < taps) add_taps<1, OUT>(sums, weight + k * BLOCK, source + k * BLOCK);
#pragma GCC unroll 16
    for (int i = 0; i < OUT; ++i) store(result + i * BLOCK, sums[i]);
}

// result[i] = bias + sum_k weight[k] * source[i + k] for i < outputs and a whole block of channels; result and
// source have room for outputs up to the next multiple of OUTPUTS.
__attribute__((noinline)) void convolve_tile(
    const float* weight, const float* bias, int64_t taps, const float* source, int64_t outputs, float* result) {
    for (int v = 0; v < VECTORS; ++v) {
        const int at = v * LANES;
        int64_t i = 0;
        while (i < outputs) {
            const int64_t left = outputs - i;
            const float* from = source + i * BLOCK + at;
            float* to = result + i * BLOCK + at;
            if (left > 4) {
                convolve_outputs<OUTPUTS>(weight + at, bias + at, taps, from, to);
                i += OUTPUTS;
            } else if (left > 1) {
                convolve_outputs<4>(weight + at, bias + at, taps, from, to);
                i += 4;
            } else {
                convolve_outputs<1>(weight + at, bias + at, taps, from, to);
                i += 1;
            }
        }
    }
}

// The same of the weight gradient: gradients of outputs, and taps.
constexpr int GRADIENTS = REGISTERS == 32 ? 8 : 16;
constexpr int GRADIENT_TAPS = 8;

// total[k] += sum_i grad[i] * source[i + k] for k < COUNT; outputs is a multiple of GRADIENTS.
template <int COUNT>
inline __attribute__((always_inline)) void correlate_taps(
    float* total, const float* grad, const float* source, int64_t outputs) {
    Vector sums[COUNT] = {};
    for (int64_t i = 0; i < outputs; i += GRADIENTS) {
        Vector g[GRADIENTS];
#pragma GCC unroll 16
        for (int b = 0; b < GRADIENTS; ++b) g[b] = load(grad + (i + b) * BLOCK);
#pragma GCC unroll 32
        for (int j = 0; j < GRADIENTS + COUNT - 1; ++j) {
            const Vector x = load(source + (i + j) * BLOCK);
#pragma GCC unroll 16
            for (int k = 0; k < COUNT; ++k)
                if (j - k >= 0 && j - k < GRADIENTS) sums[k] += x * g[j - k];
        }
    }
#pragma GCC unroll 16
    for (int k = 0; k < COUNT; ++k) store(total + k * BLOCK, load(total + k * BLOCK) + sums[k]);
}

// total[k] += sum over i < outputs of grad[i] * source[i + k] for a whole block of channels; grad and source are zero
// up to the next multiple of GRADIENTS.
__attribute__((noinline)) void correlate_tile(float* total, int64_t taps, const float* grad, const float* source, int64_t outputs) {
    outputs = (outputs + GRADIENTS - 1) / GRADIENTS * GRADIENTS;
    for (int v = 0; v < VECTORS; ++v) {
        const int at = v * LANES;
        int64_t k = 0;
        for (; k + GRADIENT_TAPS <= taps; k += GRADIENT_TAPS)
            correlate_taps<GRADIENT_TAPS>(total + k * BLOCK + at, grad + at, source + k * BLOCK + at, outputs);
        if (k + 4 <= taps) {
            correlate_taps<4>(total + k * BLOCK + at, grad + at, source + k * BLOCK + at, outputs);
            k += 4;
        }
        if (k + 2 <= taps) {
            correlate_taps<2>(total + k * BLOCK + at, grad + at, source + k * BLOCK + at, outputs);
            k += 2;
        }
        if (k < taps) correlate_taps<1>(total + k * BLOCK + at, grad + at, source + k * BLOCK + at, outputs);
    }
}

}  // namespace
