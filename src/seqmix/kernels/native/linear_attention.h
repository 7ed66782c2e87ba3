// Causal linear attention with a decay for each head and position, the sum behind Mamba-2 and RetNet and behind each
// of their gradients. Sizes and strides count floats; the last axis of key, value, query, state and output is
// contiguous.
//
//     S[t] = exp(log_decay[t]) S[t-1] + key[t] (outer) value[t]          S is (keys, values) for each head
//     output[t] = query[t] · S[t]
#pragma once

#include <cstdint>

enum { SEQMIX_ATTENTION_CHUNK = 32 };

// (batch, time, heads / share, width): `share` neighbouring heads read one and the same.
struct SeqmixHeads {
    const float* data;
    int64_t batch, time, head;  // strides
    int64_t share;
};

struct SeqmixLinearAttention {
    int64_t batch, time, heads, keys, values;
    int64_t backwards;           // whether time runs from the last position to the first
    int64_t sum;                 // neighbouring heads whose outputs are added up
    int64_t parts;               // how many sums of their own the heads of one output are cut into
    int64_t threads;
    SeqmixHeads key, value, query;
    const float* log_decay;      // (batch, time, heads), what the state before a position is multiplied by
    const float* state;          // (batch, heads, keys, values), or null for zero
    float* output;               // (parts, batch, time, heads / sum, values)
    float* final_state;          // (batch, heads, keys, values)
    float* kept;                 // (batch, heads, chunks, keys, values): the states before each chunk of
                                 // SEQMIX_ATTENTION_CHUNK positions; written in order of time, or null

    // Backwards, what the logarithms of the decays of a call in order of time get, where that call's queries are
    // this one's values and its keys this one's queries: the product of the state's gradient, which is this call's
    // state after a position, with that call's state before it, decayed. All of these or none.
    const float* against;        // that call's `kept`
    SeqmixHeads against_value;   // its values and decays
    const float* against_decay;
    float* grad_log;             // (batch, time, heads)
};

// What remains of Mamba-2's gradients once that of u = dt x is known, row by row of a head's width; all contiguous but
// for the strides given.
struct SeqmixStateSpaceEnds {
    int64_t batch, time, heads, width, threads;
    SeqmixHeads x, grad_y;
    const float* grad_written;   // (batch, time, heads, width), the gradient of u
    const float* dt;             // (batch, time, heads)
    const float* D;              // (heads)
    float* grad_x;               // (batch, time, heads, width) = dt grad_u + D grad_y
    float* grad_dt;              // (batch, time, heads) = grad_u · x
    float* grad_D;               // (batch, time, heads) = grad_y · x, to be summed
};
