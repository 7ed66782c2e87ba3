// RMSNorm and LayerNorm over the rows of a (rows, dim) tensor, with what comes before them: what a call is given.
//
//     value = x                        SEQMIX_NORM_PLAIN
//     value = x + other                SEQMIX_NORM_ADD, whose gradient is that of SEQMIX_NORM_PLAIN at the value
//     value = x * silu(other)           SEQMIX_NORM_GATE
//     normed = value / sqrt(mean(value^2) + eps) * weight
//     normed = (value - mean(value)) / sqrt(mean((value - mean)^2) + eps) * weight + bias      when centred
#pragma once

#include <cstdint>

enum SeqmixNormSource { SEQMIX_NORM_PLAIN = 0, SEQMIX_NORM_ADD = 1, SEQMIX_NORM_GATE = 2 };

struct SeqmixNorm {
    int64_t rows, dim;
    int64_t groups;   // row r uses weight[r % groups]; `other` and its gradient have a stride for each `groups` rows
    int64_t storage;  // SeqmixStorage of x, other, value, normed and their gradients
    int64_t source;   // SeqmixNormSource
    int64_t centred;
    int64_t threads;
    float eps;
    const void* x;     // (rows, dim) contiguous, as all without a stride
    const void* other;  // (rows / groups, groups * dim)
    int64_t other_stride;
    const float* weight;  // (groups, dim)
    const float* bias;    // (groups, dim) or null
    void* value;          // or null
    void* normed;
    float* mean;  // (rows), when centred; written by the forward, read by the gradient, as scale
    float* scale;  // (rows), 1 / sqrt(...)

    // Of the gradient.
    const void* grad_normed;
    const void* grad_value;  // (rows, dim) or null: added to what the norm gives
    void* grad_x;
    void* grad_other;         // of SEQMIX_NORM_GATE
    float* grad_weight;      // (groups, dim)
    float* grad_bias;        // (groups, dim) or null
};
