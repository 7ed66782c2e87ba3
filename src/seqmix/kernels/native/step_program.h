// One token through a model: a list of operations on vectors, run in order by a few threads. All memory is the
// caller's. Vectors have room for whole vectors of 16 floats, and what stands behind one may be read.
#pragma once

#include <cstdint>

enum SeqmixWeightType { SEQMIX_WEIGHT_F32 = 0, SEQMIX_WEIGHT_BF16 = 1, SEQMIX_WEIGHT_INT8 = 2 };

enum SeqmixStepKind {
    SEQMIX_STEP_EMBED = 0,        // out (n) = row `token` of weight (vocabulary, n)
    SEQMIX_STEP_ANGLES = 1,       // state, other (n) = cosines and sines of position * weight[i], doubles
    SEQMIX_STEP_ROTATE = 2,       // pairs (i, i + size / 2) of each of `heads` parts of a, by cosines b and sines c
    SEQMIX_STEP_RMS_NORM = 3,     // each of `heads` equal parts of a (n) over its root mean square, times weight
    SEQMIX_STEP_LAYER_NORM = 4,   // a (n) without its mean, over its deviation, times weight, plus bias
    SEQMIX_STEP_LINEAR = 5,       // out (n) = weight (n, k), in panels, times a (k), times scale, plus bias, plus b
    SEQMIX_STEP_CONVOLVE = 6,     // depthwise: past in the rings `state`, weight of `size` taps, plus bias;
                                  // without a: the sums over the past alone; without out: a enters the rings alone
    SEQMIX_STEP_MULTIPLY = 7,     // out = a * b + c, with silu(a) for type 1; c may be null
    SEQMIX_STEP_ADD = 8,          // out = a + b
    SEQMIX_STEP_SILU = 9,         // out = a * sigmoid(a)
    SEQMIX_STEP_REMEMBER = 10,    // keys b and values c (n, size) go into a slot of state and other (n, slots, size)
    SEQMIX_STEP_ATTEND = 11,      // out = softmax(low * a keys) values for each of `heads` heads of n groups
    SEQMIX_STEP_LSTM_CELL = 12,   // gates a (4 n), c in state, h in other
    SEQMIX_STEP_STATE_SPACE = 13  // Mamba-2: x a, dt b, B c, C d; A weight, D bias, bias of dt scale
};

// Neighbouring channels of one dilation. `ring` and `weight` count numbers from the beginning of the past and of the
// weights, which lie in panels of 16 channels, tap by tap.
struct SeqmixStepGroup {
    int64_t first, last, dilation, length, ring, weight;
};

struct SeqmixStepOperation {
    int64_t kind;
    float* out;
    const float *a, *b, *c, *d;
    const void* weight;
    const float *scale, *bias;
    void *state, *other;
    int64_t n, k, type, heads, size, slots;
    const SeqmixStepGroup* groups;
    int64_t num_groups;
    int64_t independent;  // whether it reads nothing that the operation before it writes
    double eps, low, high;
};

struct SeqmixStep {
    const SeqmixStepOperation* operations;
    int64_t num_operations, token, position, threads;
};
