// RMSNorm and LayerNorm, forward and gradient, for one instruction set. See norm.h for the equations.
//
// With n = (value - mean) * scale and g = grad_normed * weight:
//     grad_x = grad_value + scale * (g - mean(g) - n * mean(g n))        without mean(g) where the norm is not centred

#include "norm.h"

#include <cmath>

#include "rows.h"

namespace {

template <typename Number>
struct Rows {
    const SeqmixNorm& norm;

    const Number* x(int64_t row) const { return static_cast<const Number*>(norm.x) + row * norm.dim; }
    int64_t other_offset(int64_t row) const {
        return row / norm.groups * norm.other_stride + row % norm.groups * norm.dim;
    }
    const Number* other(int64_t row) const { return static_cast<const Number*>(norm.other) + other_offset(row); }
    Number* at(void* of, int64_t row) const { return static_cast<Number*>(of) + row * norm.dim; }
    const Number* at(const void* of, int64_t row) const { return static_cast<const Number*>(of) + row * norm.dim; }
};

// The row that is normed, in a buffer whose padding is zero.
template <typename Number>
inline void read_value(const Rows<Number>& rows, int64_t row, float* value) {
    const Number* x = rows.x(row);
    if (rows.norm.source == SEQMIX_NORM_PLAIN) {
        read_row(x, rows.norm.dim, value);
        return;
    }
    const Number* other = rows.other(row);
    if (rows.norm.source == SEQMIX_NORM_ADD)
        for_each_vector(0, rows.norm.dim, [&](auto lanes, int64_t c) {
            store(value + c, lanes.read(x + c) + lanes.read(other + c));
        });
    else
        for_each_vector(0, rows.norm.dim, [&](auto lanes, int64_t c) {
            const Vector gate = lanes.read(other + c);
            store(value + c, lanes.read(x + c) * gate * sigmoid(gate));
        });
}

// Subtracts the mean from a row, whose padding stays zero.
inline void centre(float* value, int64_t dim, float mean) {
    for (int64_t c = 0; c < dim; c += LANES) store(value + c, load(value + c) - broadcast(mean));
    for (int64_t c = dim; c < padded(dim); ++c) value[c] = 0;
}

template <typename Number>
void forward(const SeqmixNorm& norm, int64_t first, int64_t last) {
    const Rows<Number> rows{norm};
    const int64_t dim = norm.dim, width = padded(dim);
    PaddedRows weights(norm.weight, norm.groups, dim), buffers(2, dim);
    PaddedRows biases(norm.bias ? norm.groups : 0, dim);
    for (int64_t group = 0; norm.bias && group < norm.groups; ++group)
        std::copy_n(norm.bias + group * dim, dim, biases[group]);
    float* const value = buffers[0];
    for (int64_t row = first; row < last; ++row) {
        read_value(rows, row, value);
        if (norm.value) {
            Number* kept = rows.at(norm.value, row);
            write_row(kept, dim, value);
            // What is normed is what was kept, in its precision.
            if (sizeof(Number) < sizeof(float)) read_row(kept, dim, value);
        }
        if (norm.centred) {
            const float mean = sum_row(width, [&](int64_t c) { return load(value + c); }) / float(dim);
            centre(value, dim, mean);
            norm.mean[row] = mean;
        }
        const float squares = sum_row(width, [&](int64_t c) { return load(value + c) * load(value + c); });
        const float scale = 1.0f / std::sqrt(squares / float(dim) + norm.eps);
        norm.scale[row] = scale;
        const float* weight = weights[row % norm.groups];
        Number* normed = rows.at(norm.normed, row);
        if (norm.bias) {
            const float* bias = biases[row % norm.groups];
            for_each_vector(0, dim, [&](auto lanes, int64_t c) {
                lanes.write(normed + c, load(value + c) * broadcast(scale) * load(weight + c) + load(bias + c));
            });
        } else {
            for_each_vector(0, dim, [&](auto lanes, int64_t c) {
                lanes.write(normed + c, load(value + c) * broadcast(scale) * load(weight + c));
            });
        }
    }
}

// Gradients of rows first ... last - 1; those of weight and bias are added to sums of each group.
template <typename Number>
void gradient(const SeqmixNorm& norm, int64_t first, int64_t last, PaddedRows& grad_weight, PaddedRows& grad_bias) {
    const Rows<Number> rows{norm};
    const int64_t dim = norm.dim, width = padded(dim);
    PaddedRows weights(norm.weight, norm.groups, dim), buffers(2, dim);
    float *const n = buffers[0], *const g = buffers[1];
    for (int64_t row = first; row < last; ++row) {
        const int64_t group = row % norm.groups;
        const Vector scale = broadcast(norm.scale[row]);
        read_value(rows, row, n);
        if (norm.centred) centre(n, dim, norm.mean[row]);
        read_row(rows.at(norm.grad_normed, row), dim, g);
        float* const sums_weight = grad_weight[group];
        for (int64_t c = 0; c < width; c += LANES) {
            store(n + c, load(n + c) * scale);
            store(sums_weight + c, load(sums_weight + c) + load(g + c) * load(n + c));
        }
        if (norm.centred) {
            float* const sums_bias = grad_bias[group];
            for (int64_t c = 0; c < width; c += LANES) store(sums_bias + c, load(sums_bias + c) + load(g + c));
        }
        const float* weight = weights[group];
        for (int64_t c = 0; c < width; c += LANES) store(g + c, load(g + c) * load(weight + c));
        const Vector slope = broadcast(sum_row(width, [&](int64_t c) { return load(g + c) * load(n + c); }) / float(dim));
        Vector shift = {};
        if (norm.centred) shift = broadcast(sum_row(width, [&](int64_t c) { return load(g + c); }) / float(dim));
        const auto of_value = [&](int64_t c) { return scale * (load(g + c) - shift - load(n + c) * slope); };
        Number* const grad_x = rows.at(norm.grad_x, row);
        if (norm.source == SEQMIX_NORM_GATE) {
            const Number *x = rows.x(row), *other = rows.other(row);
            Number* const grad_other = rows.at(norm.grad_other, row);
            for_each_vector(0, dim, [&](auto lanes, int64_t c) {
                const Vector grad = of_value(c), gate = lanes.read(other + c), s = sigmoid(gate);
                lanes.write(grad_x + c, grad * gate * s);
                lanes.write(grad_other + c,
                            grad * lanes.read(x + c) * s * (broadcast(1.0f) + gate * (broadcast(1.0f) - s)));
            });
        } else if (norm.grad_value) {
            const Number* grad_value = rows.at(norm.grad_value, row);
            for_each_vector(0, dim, [&](auto lanes, int64_t c) {
                lanes.write(grad_x + c, of_value(c) + lanes.read(grad_value + c));
            });
        } else {
            for_each_vector(0, dim, [&](auto lanes, int64_t c) { lanes.write(grad_x + c, of_value(c)); });
        }
    }
}

template <typename Number>
void gradient(const SeqmixNorm& norm, int64_t least) {
    const int64_t threads = std::max<int64_t>(1, norm.threads);
    std::vector<PaddedRows> weights(threads, {norm.groups, norm.dim}), biases = weights;
    share_rows(norm.rows, threads, least, [&](int64_t thread, int64_t first, int64_t last) {
        gradient<Number>(norm, first, last, weights[thread], biases[thread]);
    });
    for (int64_t group = 0; group < norm.groups; ++group)
        for (int64_t c = 0; c < norm.dim; ++c) {
            float weight = 0, bias = 0;
            for (int64_t thread = 0; thread < threads; ++thread) {
                weight += weights[thread][group][c];
                bias += biases[thread][group][c];
            }
            norm.grad_weight[group * norm.dim + c] = weight;
            if (norm.grad_bias) norm.grad_bias[group * norm.dim + c] = bias;
        }
}

int64_t least_rows(const SeqmixNorm& norm) { return FLOATS_A_THREAD / std::max<int64_t>(1, norm.dim) + 1; }

}  // namespace

EXPORT void KERNEL(seqmix_norm)(const SeqmixNorm* norm) {
    share_rows(norm->rows, norm->threads, least_rows(*norm), [&](int64_t, int64_t first, int64_t last) {
        if (norm->storage == 0)
            forward<float>(*norm, first, last);
        else
            forward<bfloat16>(*norm, first, last);
    });
}

EXPORT void KERNEL(seqmix_norm_gradient)(const SeqmixNorm* norm) {
    if (norm->storage == 0)
        gradient<float>(*norm, least_rows(*norm));
    else
        gradient<bfloat16>(*norm, least_rows(*norm));
}
