// The selective scan (Mamba) on a CPU: what a call is given. Sizes and strides count floats; channels lie next to
// each other in x, dt, z and y, states next to each other in B and C.
//
//     s[t] = softplus(dt[t] + dt_bias)                                   or dt[t] + dt_bias
//     h[t, n] = exp(s[t] A[n]) h[t-1, n] + s[t] x[t] B[t, n]             for every channel
//     y[t] = (sum_n C[t, n] h[t, n] + D x[t]) silu(z[t])
#pragma once

#include <cstdint>

// A tensor (batch, time, width) whose width is contiguous.
struct SeqmixSequence {
    const float* data;
    int64_t batch, time;  // strides
};

struct SeqmixSelectiveScan {
    int64_t batch, time, dim, size;
    int64_t chunk;               // positions between two kept states
    int64_t threads;
    int64_t use_softplus;
    SeqmixSequence x, dt, z;     // (batch, time, dim); z.data may be null
    SeqmixSequence B, C;         // (batch, time, size)
    const float* A;              // (size, dim)
    const float* D;              // (dim) or null
    const float* dt_bias;        // (dim) or null
    const float* state;          // (batch, size, dim), the state before the first position, or null for zero
    const int64_t* runs;         // (batch, time), equal within a document, 0 where `state` goes on; or null
    float* y;                    // (batch, time, dim)
    float* final_state;          // (batch, size, dim)
    float* kept;                 // (batch, chunks, size, dim), the states before each chunk; or null in a forward

    SeqmixSequence grad_y;       // from here on: the backward
    const float* grad_final;     // (batch, size, dim)
    float* grad_x;               // (batch, time, dim), as grad_dt and grad_z, which is null when z is
    float* grad_dt;
    float* grad_z;
    float* grad_B;               // (batch, time, size), as grad_C
    float* grad_C;
    float* grad_A;               // (batch, size, dim): for each row, to be summed
    float* grad_D;               // (batch, dim), as grad_dt_bias
    float* grad_dt_bias;
    float* grad_state;           // (batch, size, dim)
};
