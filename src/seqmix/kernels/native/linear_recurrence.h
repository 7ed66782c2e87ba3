// The gated linear recurrence on a CPU, for every channel: h[t] = a[t] h[t-1] + b[t]. Sizes and strides count floats;
// channels lie next to each other.
#pragma once

#include <cstdint>

// A tensor (batch, time, dim) whose channels are contiguous.
struct SeqmixChannels {
    const float* data;
    int64_t batch, time;  // strides
};

struct SeqmixLinearRecurrence {
    int64_t batch, time, dim, threads;
    SeqmixChannels a, b;
    const float* state;          // (batch, dim), before the first position
    const int64_t* runs;         // (batch, time), equal within a document, 0 where `state` goes on; or null
    float* h;                    // (batch, time, dim); read by the backward

    SeqmixChannels grad_h;       // from here on: the backward
    float* grad_a;               // (batch, time, dim), as grad_b
    float* grad_b;
    float* grad_state;           // (batch, dim): comes in as the gradient of the last state
};
