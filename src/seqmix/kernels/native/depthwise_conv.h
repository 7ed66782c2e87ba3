// The depthwise dilated convolution on a CPU: what a call is given. Sizes and strides count elements.
//
//     z[b, t, c] = bias[c] + sum_k weight[c, k] * value[b, t + offset_c + k * dilation_c, c]
//
// over the sources inside the run of t. A causal convolution has offset -(K - 1) * dilation, its input gradient
// offset 0 with the kernel turned round, a centred one -floor((K - 1) * dilation / 2). Gates are computed on the
// way: value from up to two tensors, the results from z and up to three tensors.
#pragma once

#include <cstdint>

enum SeqmixStorage { SEQMIX_FLOAT32 = 0, SEQMIX_BFLOAT16 = 1 };

// value = in[0]; in[0] * in[1]
enum SeqmixConvSource { SEQMIX_PLAIN = 0, SEQMIX_PRODUCT = 1 };

// out[0] = z
// out[0] = z * with[0]
// out[0] = z * with[0], out[1] = z * with[1]
// out[0] = z * with[0], out[1] = with[0] * with[1]
// out[0] = z * silu(with[0]) * with[1]
// out[0] = z * with[2] * silu'(with[0]) * with[1], out[1] = z * with[2] * silu(with[0]),
//     out[2] = with[2] * silu(with[0]) * with[1]
enum SeqmixConvSink {
    SEQMIX_STORE = 0,
    SEQMIX_TIMES = 1,
    SEQMIX_TIMES_BOTH = 2,
    SEQMIX_TIMES_GRADIENT = 3,
    SEQMIX_GATE = 4,
    SEQMIX_GATE_GRADIENT = 5
};

// A (batch, time, dim) tensor with contiguous channels.
struct SeqmixStream {
    void* data;
    int64_t batch_stride, time_stride;
};

// Neighbouring channels first ... last - 1 of one dilation. Their ring has `length` slots of (last - first)
// channels and starts at `ring` in a row of the past.
struct SeqmixConvGroup {
    int64_t first, last, dilation, offset, length, ring;
};

struct SeqmixConv {
    int64_t batch, time, dim, kernel;
    int64_t storage;  // of all streams and of past
    int64_t source;
    SeqmixStream in[2];
    int64_t sink;
    SeqmixStream with[3], out[3];
    SeqmixStream grad;   // of the weight gradient: the gradient of z
    float* grad_weight;  // (dim, kernel)
    float* grad_bias;    // (dim), or null
    const float* weight;  // (dim, kernel)
    int64_t turned;       // whether taps are taken from the last to the first
    const float* bias;    // (dim), or null
    const SeqmixConvGroup* groups;
    int64_t num_groups;
    const int64_t* runs;  // (batch, time), equal exactly within one document, or null: one run a row
    const void* past;     // (batch, past_size) rings of values that the run 0 of each row continues, or null
    int64_t past_size;
    const int64_t* position;  // (batch): positions already read, with past
    // Of the rings after the call: positions of each row's last document, and the rings, as past.
    const int64_t* position_after;
    void* past_after;
    int64_t threads;
};
