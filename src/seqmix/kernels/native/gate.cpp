// SwiGLU's gate and its gradient, for one instruction set. See gate.h.

#include "gate.h"

#include "rows.h"

namespace {

template <typename Number>
const Number* at(const void* of, int64_t row, int64_t stride) {
    return static_cast<const Number*>(of) + row * stride;
}

template <typename Number>
Number* to(void* of, int64_t row, int64_t stride) {
    return static_cast<Number*>(of) + row * stride;
}

template <typename Number>
void forward(const SeqmixGate& call, int64_t row, int64_t first, int64_t last) {
    const Number* gate = at<Number>(call.gate, row, call.gate_stride);
    const Number* up = at<Number>(call.up, row, call.up_stride);
    Number* product = to<Number>(call.product, row, call.product_stride);
    for_each_vector(first, last, [&](auto lanes, int64_t c) {
        const Vector g = lanes.read(gate + c);
        lanes.write(product + c, g * sigmoid(g) * lanes.read(up + c));
    });
}

template <typename Number>
void gradient(const SeqmixGate& call, int64_t row, int64_t first, int64_t last) {
    const Number* gate = at<Number>(call.gate, row, call.gate_stride);
    const Number* up = at<Number>(call.up, row, call.up_stride);
    const Number* grad = at<Number>(call.grad, row, call.grad_stride);
    Number* grad_gate = to<Number>(call.grad_gate, row, call.grad_gate_stride);
    Number* grad_up = to<Number>(call.grad_up, row, call.grad_up_stride);
    for_each_vector(first, last, [&](auto lanes, int64_t c) {
        const Vector g = lanes.read(gate + c), d = lanes.read(grad + c), s = sigmoid(g);
        lanes.write(grad_up + c, d * g * s);
        lanes.write(grad_gate + c, d * lanes.read(up + c) * s * (broadcast(1.0f) + g * (broadcast(1.0f) - s)));
    });
}

// Rows that lie one after another in every tensor are one long row.
bool is_one_piece(const SeqmixGate& call, bool is_gradient) {
    const bool operands = call.gate_stride == call.width && call.up_stride == call.width;
    return operands && (is_gradient ? call.grad_stride == call.width && call.grad_gate_stride == call.width &&
                                          call.grad_up_stride == call.width
                                    : call.product_stride == call.width);
}

// Calls work(row, first, last) for stretches of rows.
template <typename Work>
void share(const SeqmixGate& call, bool is_gradient, const Work& work) {
    if (is_one_piece(call, is_gradient)) {
        // In steps of a cache line, so that threads do not write to the same one.
        const int64_t total = call.rows * call.width, step = 64;
        share_rows((total + step - 1) / step, call.threads, FLOATS_A_THREAD / step,
                   [&](int64_t, int64_t first, int64_t last) { work(0, first * step, std::min(last * step, total)); });
        return;
    }
    share_rows(call.rows, call.threads, FLOATS_A_THREAD / std::max<int64_t>(1, call.width) + 1,
               [&](int64_t, int64_t first, int64_t last) {
                   for (int64_t row = first; row < last; ++row) work(row, 0, call.width);
               });
}

}  // namespace

EXPORT void KERNEL(seqmix_gate)(const SeqmixGate* call) {
    share(*call, false, [&](int64_t row, int64_t first, int64_t last) {
        if (call->storage == 0)
            forward<float>(*call, row, first, last);
        else
            forward<bfloat16>(*call, row, first, last);
    });
}

EXPORT void KERNEL(seqmix_gate_gradient)(const SeqmixGate* call) {
    share(*call, true, [&](int64_t row, int64_t first, int64_t last) {
        if (call->storage == 0)
            gradient<float>(*call, row, first, last);
        else
            gradient<bfloat16>(*call, row, first, last);
    });
}
