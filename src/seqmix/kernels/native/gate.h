// SwiGLU's gate, product = silu(gate) * up over (rows, width), and its gradient: what a call is given.
#pragma once

#include <cstdint>

struct SeqmixGate {
    int64_t rows, width;
    int64_t storage;  // SeqmixStorage of all
    int64_t threads;
    const void *gate, *up, *grad;  // (rows, width), contiguous in width
    int64_t gate_stride, up_stride, grad_stride;
    void *product, *grad_gate, *grad_up;  // the forward writes the first, the gradient the others
    int64_t product_stride, grad_gate_stride, grad_up_stride;
};
