// The generalised delta rule with a decay of each key channel, for every head (seqmix/kernels/delta_rule):
//
//     S[t] = S[t-1] diag(w[t]) - (S[t-1] kappa[t]) (rate[t] kappa[t])^T + v[t] k[t]^T;   y[t] = S[t] r[t]
//
// Everything is contiguous. S is (values, keys), w the exponential of log_decay.
#pragma once

#include <cstdint>

// Positions between two states that a forward call keeps for the backward.
#define SEQMIX_DELTA_CHUNK 16

struct SeqmixDeltaRule {
    int64_t batch, time, heads, keys, values, threads;
    const float* r;             // (batch, time, heads, keys), as log_decay, k, kappa and rate
    const float* log_decay;
    const float* k;
    const float* v;             // (batch, time, heads, values)
    const float* kappa;
    const float* rate;
    const float* state;         // (batch, heads, values, keys), before the first position
    const int64_t* runs;        // (batch, time), equal within a document, 0 where `state` goes on; or null
    float* y;                   // (batch, time, heads, values), written by the forward
    float* final_state;         // (batch, heads, values, keys), likewise
    float* kept;                // (batch, heads, chunks, values, keys): the states before each chunk; or null

    const float* grad_y;        // from here on: the backward, which reads `kept`
    const float* grad_final;    // (batch, heads, values, keys)
    float* grad_r;              // each as what it is the gradient of
    float* grad_log_decay;
    float* grad_k;
    float* grad_v;
    float* grad_kappa;
    float* grad_rate;
    float* grad_state;
};
