// The loss of rows of logits and its gradient in their place: what a call is given.
//
//     total = ln sum_v exp(logits[v]);   loss = total - logits[target]
//     logits[v] <- (exp(logits[v] - total) - [v = target]) * factor
#pragma once

#include <cstdint>

struct SeqmixCrossEntropy {
    int64_t rows, vocabulary;
    int64_t storage;  // SeqmixStorage of the logits
    int64_t threads;
    int64_t ignored;  // rows with this target have a loss and gradients of zero
    void* logits;     // (rows, vocabulary), contiguous
    const int64_t* targets;
    const float* factor;  // (rows), or null: the logits stay
    float* losses;        // (rows)
    int64_t bad_row;  // written: a row whose target is not in the vocabulary and not the ignored one; -1
};
