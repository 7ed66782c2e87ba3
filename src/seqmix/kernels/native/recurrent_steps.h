// One more position of a short convolution, of Mamba's scan and of Mamba-2's, on a CPU; each state is brought up to
// date in place and must be contiguous. Strides count floats.
#pragma once

#include <cstdint>

// (batch, channels) or (batch, heads, width) with the last axis `step` apart.
struct SeqmixRow {
    const float* data;
    int64_t batch, step;
};

// y = act(sum_k weight[k] input[k] + bias): the kernel - 1 newest of the state, then x.
struct SeqmixConvStep {
    int64_t batch, dim, kernel, length, use_silu;
    SeqmixRow x;
    float* state;                // (batch, dim, length), the newest last
    const float* weight;         // (dim, kernel)
    const float* bias;           // (dim) or null
    float* y;                    // (batch, dim)
};

// See selective_scan.h for the equation.
struct SeqmixSelectiveStep {
    int64_t batch, dim, size, use_softplus;
    SeqmixRow x, dt, z;          // z.data may be null
    SeqmixRow B, C;              // (batch, size), contiguous
    const float* A;              // (dim, size)
    const float* D;              // (dim) or null
    const float* dt_bias;        // (dim) or null
    float* state;                // (batch, dim, size)
    float* y;                    // (batch, dim)
};

// h = exp(s A) h + s x (outer) B, y = h · C + D x, with s = softplus(dt + dt_bias), for every head.
struct SeqmixStateSpaceStep {
    int64_t batch, heads, width, groups, size, use_softplus;
    SeqmixRow x;                 // (batch, heads, width), contiguous but for the batch
    SeqmixRow dt;                // (batch, heads)
    SeqmixRow B, C;              // (batch, groups, size), contiguous but for the batch
    SeqmixRow A, D, dt_bias;     // (heads), `step` apart; D and dt_bias may be null
    float* state;                // (batch, heads, width, size)
    float* y;                    // (batch, heads, width)
};
