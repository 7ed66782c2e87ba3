// The depthwise dilated convolution on a CPU: what a call is given. Sizes and strides count elements.
//
//     y[b, t, c] = bias[c] + sum_k weight[c, k] * x[b, t + offset_c + k * dilation_c, c]
//
// over the sources inside the run of t. A causal convolution has offset -(K - 1) * dilation, its input gradient
// offset 0 with the kernel turned round, a centred one -floor((K - 1) * dilation / 2).
#pragma once

#include <cstdint>

enum SeqmixStorage { SEQMIX_FLOAT32 = 0, SEQMIX_BFLOAT16 = 1 };

// Neighbouring channels first ... last - 1 of one dilation. Their ring has `length` slots of (last - first)
// channels and starts at `ring` in a row of the past.
struct SeqmixConvGroup {
    int64_t first, last, dilation, offset, length, ring;
};

struct SeqmixConv {
    int64_t batch, time, dim, kernel;
    int64_t storage;             // of x, y and past
    const void* x;               // (batch, time, dim), channels contiguous
    int64_t x_batch, x_time;     // strides
    void* y;                     // forward: the result; weight gradient: the gradient of the result, read only
    int64_t y_batch, y_time;
    const float* weight;         // (kernel, dim): tap-major
    float* grad_weight;          // (kernel, dim), written by the weight gradient
    const float* bias;           // (dim) or null
    const SeqmixConvGroup* groups;
    int64_t num_groups;
    const int64_t* runs;         // (batch, time), equal exactly within one document, or null: one run a row
    const void* past;            // (batch, past_size) rings that the run 0 of each row continues, or null
    int64_t past_size;
    const int64_t* position;     // (batch): positions already read, with past
    int64_t threads;
};
