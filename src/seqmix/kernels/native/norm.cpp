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
    int64_t with_offset(int64_t row) const {
        return row / norm.groups * norm.with_stride + row % norm.groups * norm.dim;
    }
    const Number* with(int64_t row) const { return static_cast<const Number*>(norm.with) + with_offset(row); }
    const float* weight(int64_t row) const { return norm.weight + row % norm.groups * norm.dim; }
    const float* bias(int64_t row) const { return norm.bias + row % norm.groups * norm.dim; }
    Number* at(void* of, int64_t row) const { return static_cast<Number*>(of) + row * norm.dim; }
    const Number* at(const void* of, int64_t row) const { return static_cast<const Number*>(of) + row * norm.dim; }
};

// The row that is normed, as floats with zeros beyond it.
template <typename Number>
inline void read_value(const Rows<Number>& rows, int64_t row, float* value) {
    const int64_t dim = rows.norm.dim;
    read_row(rows.x(row), dim, [&](Vector v, int64_t c) { store(value + c, v); });
    if (rows.norm.source == SEQMIX_NORM_ADD)
        read_row(rows.with(row), dim, [&](Vector v, int64_t c) { store(value + c, load(value + c) + v); });
    if (rows.norm.source == SEQMIX_NORM_GATE)
        read_row(rows.with(row), dim, [&](Vector v, int64_t c) {
            store(value + c, load(value + c) * v * sigmoid(v));
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
    const int64_t dim = norm.dim;
    std::vector<float> buffer(padded(dim));
    float* value = buffer.data();
    for (int64_t row = first; row < last; ++row) {
        read_value(rows, row, value);
        if (norm.value) {
            Number* kept = rows.at(norm.value, row);
            write_row(kept, dim, [&](int64_t c) { return load(value + c); });
            // What is normed is what was kept, in its precision.
            if (sizeof(Number) < sizeof(float))
                read_row(kept, dim, [&](Vector v, int64_t c) { store(value + c, v); });
        }
        if (norm.centred) {
            Vector sums = {};
            for (int64_t c = 0; c < dim; c += LANES) sums += load(value + c);
            const float mean = sum_of(sums) / float(dim);
            centre(value, dim, mean);
            norm.mean[row] = mean;
        }
        Vector squares = {};
        for (int64_t c = 0; c < dim; c += LANES) squares += load(value + c) * load(value + c);
        const float scale = 1.0f / std::sqrt(sum_of(squares) / float(dim) + norm.eps);
        norm.scale[row] = scale;
        const float* weight = rows.weight(row);
        if (norm.bias) {
            const float* bias = rows.bias(row);
            read_row(weight, dim, [&](Vector w, int64_t c) {
                store(value + c, load(value + c) * broadcast(scale) * w);
            });
            read_row(bias, dim, [&](Vector b, int64_t c) { store(value + c, load(value + c) + b); });
        } else {
            read_row(weight, dim, [&](Vector w, int64_t c) {
                store(value + c, load(value + c) * broadcast(scale) * w);
            });
        }
        write_row(rows.at(norm.normed, row), dim, [&](int64_t c) { return load(value + c); });
    }
}

// Gradients of rows first ... last - 1; those of weight and bias are added to (groups, padded dim) sums.
template <typename Number>
void gradient(const SeqmixNorm& norm, int64_t first, int64_t last, float* grad_weight, float* grad_bias) {
    const Rows<Number> rows{norm};
    const int64_t dim = norm.dim, width = padded(dim);
    std::vector<float> buffer(2 * width);
    float* n = buffer.data();
    float* g = n + width;
    for (int64_t row = first; row < last; ++row) {
        const float scale = norm.scale[row];
        read_value(rows, row, n);
        if (norm.centred) centre(n, dim, norm.mean[row]);
        float* sums_weight = grad_weight + row % norm.groups * width;
        float* sums_bias = grad_bias + row % norm.groups * width;
        read_row(rows.at(norm.grad_normed, row), dim, [&](Vector v, int64_t c) {
            const Vector normed = load(n + c) * broadcast(scale);
            store(n + c, normed);
            store(g + c, v);
            store(sums_weight + c, load(sums_weight + c) + v * normed);
            if (norm.centred) store(sums_bias + c, load(sums_bias + c) + v);
        });
        Vector along = {}, total = {};
        read_row(rows.weight(row), dim, [&](Vector w, int64_t c) {
            const Vector v = load(g + c) * w;
            store(g + c, v);
            along += v * load(n + c);
            total += v;
        });
        const Vector slope = broadcast(sum_of(along) / float(dim));
        const Vector shift = norm.centred ? broadcast(sum_of(total) / float(dim)) : Vector{};
        const Vector factor = broadcast(scale);
        for (int64_t c = 0; c < dim; c += LANES)
            store(g + c, factor * (load(g + c) - shift - load(n + c) * slope));
        if (norm.grad_value)
            read_row(rows.at(norm.grad_value, row), dim, [&](Vector v, int64_t c) { store(g + c, load(g + c) + v); });
        Number* grad_x = rows.at(norm.grad_x, row);
        if (norm.source != SEQMIX_NORM_GATE) {
            write_row(grad_x, dim, [&](int64_t c) { return load(g + c); });
            continue;
        }
        // value = x silu(with): n is no longer needed and takes the gradient of `with`.
        read_row(rows.x(row), dim, [&](Vector v, int64_t c) { store(n + c, v * load(g + c)); });
        read_row(rows.with(row), dim, [&](Vector v, int64_t c) {
            const Vector s = sigmoid(v);
            store(g + c, load(g + c) * v * s);
            store(n + c, load(n + c) * s * (broadcast(1.0f) + v * (broadcast(1.0f) - s)));
        });
        write_row(grad_x, dim, [&](int64_t c) { return load(g + c); });
        write_row(rows.at(norm.grad_with, row), dim, [&](int64_t c) { return load(n + c); });
    }
}

template <typename Number>
void gradient(const SeqmixNorm& norm, int64_t least) {
    const int64_t size = norm.groups * padded(norm.dim), threads = std::max<int64_t>(1, norm.threads);
    std::vector<float> sums(2 * size * threads);
    share_rows(norm.rows, threads, least, [&](int64_t thread, int64_t first, int64_t last) {
        float* own = sums.data() + 2 * size * thread;
        gradient<Number>(norm, first, last, own, own + size);
    });
    for (int64_t group = 0; group < norm.groups; ++group)
        for (int64_t c = 0; c < norm.dim; ++c) {
            float weight = 0, bias = 0;
            for (int64_t thread = 0; thread < threads; ++thread) {
                const float* own = sums.data() + 2 * size * thread + group * padded(norm.dim) + c;
                weight += own[0];
                bias += own[size];
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
