// Runs the operations of step_program.h.
//
// A step reads every weight once and does nothing else that takes time (step_products.h). Threads share products and
// what else is large; small operations are done by the first thread while the others wait (step_threads.h).

#include "step_program.h"

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "step_products.h"
#include "step_threads.h"
#include "vector_math.h"

namespace {

// Channels times taps from which a convolution is worth sharing out.
constexpr int64_t SHARED_CONVOLUTION = 8192;

inline Vector silu(Vector x) { return x * sigmoid(x); }

// The first `count` numbers, or as many as a vector has.
template <typename Number>
inline Vector load_up_to(const Number* from, int64_t count) {
    return count >= LANES ? load(from) : load_some(from, int(count));
}

template <typename Number>
inline void store_up_to(Number* to, Vector value, int64_t count) {
    if (count >= LANES)
        store(to, value);
    else
        store_some(to, value, int(count));
}

inline float dot(const float* a, const float* b, int64_t count) {
    Vector sum{};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sum += load(a + i) * load(b + i);
    if (i < count) sum += load_some(a + i, int(count - i)) * load_some(b + i, int(count - i));
    return sum_of(sum);
}

// tanh by exp(-2 |x|), and by its series near 0 where that would cancel.
inline Vector hyperbolic_tangent(Vector x) {
    const Vector zero{}, one = broadcast(1.0f);
    const Vector size = x < zero ? -x : x;
    const Vector e = exponential(broadcast(-2.0f) * size);
    const Vector far = (one - e) / (one + e);
    const Vector square = x * x;
    Vector p = broadcast(62.0f / 2835.0f);
    p = p * square + broadcast(-17.0f / 315.0f);
    p = p * square + broadcast(2.0f / 15.0f);
    p = p * square + broadcast(-1.0f / 3.0f);
    const Vector near = x + x * square * p;
    return size < broadcast(0.25f) ? near : x < zero ? -far : far;
}

void embed(const SeqmixStepOperation& op, int64_t token) {
    std::memcpy(op.out, static_cast<const float*>(op.weight) + token * op.n, sizeof(float) * op.n);
}

void angles(const SeqmixStepOperation& op, int64_t position) {
    const double* frequency = static_cast<const double*>(op.weight);
    for (int64_t i = 0; i < op.n; ++i) {
        const double angle = double(position) * frequency[i];
        static_cast<float*>(op.state)[i] = float(std::cos(angle));
        static_cast<float*>(op.other)[i] = float(std::sin(angle));
    }
}

void rotate(const SeqmixStepOperation& op) {
    const int64_t pairs = op.size / 2;
    for (int64_t head = 0; head < op.heads; ++head) {
        const float* x = op.a + head * op.size;
        float* y = op.out + head * op.size;
        for (int64_t i = 0; i < pairs; ++i) {
            y[i] = x[i] * op.b[i] - x[pairs + i] * op.c[i];
            y[pairs + i] = x[pairs + i] * op.b[i] + x[i] * op.c[i];
        }
        if (op.size % 2) y[op.size - 1] = x[op.size - 1];
    }
}

void rms_norm(const SeqmixStepOperation& op) {
    const int64_t width = op.n / op.heads;
    const float* weight = static_cast<const float*>(op.weight);
    for (int64_t part = 0; part < op.heads; ++part) {
        const float* x = op.a + part * width;
        const float factor = float(1.0 / std::sqrt(double(dot(x, x, width)) / double(width) + op.eps));
        float* y = op.out + part * width;
        for (int64_t i = 0; i < width; ++i) y[i] = x[i] * factor * weight[part * width + i];
    }
}

void layer_norm(const SeqmixStepOperation& op) {
    const float* weight = static_cast<const float*>(op.weight);
    Vector sums{};
    int64_t summed = 0;
    for (; summed + LANES <= op.n; summed += LANES) sums += load(op.a + summed);
    if (summed < op.n) sums += load_some(op.a + summed, int(op.n - summed));
    const float mean = sum_of(sums) / float(op.n);
    for (int64_t i = 0; i < op.n; ++i) op.out[i] = op.a[i] - mean;
    const float squares = dot(op.out, op.out, op.n);
    const float factor = float(1.0 / std::sqrt(double(squares) / double(op.n) + op.eps));
    if (op.bias)
        for (int64_t i = 0; i < op.n; ++i) op.out[i] = op.out[i] * factor * weight[i] + op.bias[i];
    else
        for (int64_t i = 0; i < op.n; ++i) op.out[i] = op.out[i] * factor * weight[i];
}

template <typename Number>
void convolve_as(const SeqmixStepOperation& op, int64_t position, int64_t thread, int64_t threads) {
    const int64_t taps = op.size;
    int64_t total = 0, done = 0;
    for (int64_t g = 0; g < op.num_groups; ++g) total += panels_of(op.groups[g].last - op.groups[g].first);
    const Share mine = share_of(total, thread, threads);
    thread_local std::vector<const Number*> rows;
    rows.resize(std::max<int64_t>(taps, int64_t(rows.size())));
    for (int64_t g = 0; g < op.num_groups; ++g) {
        const SeqmixStepGroup& group = op.groups[g];
        const int64_t width = group.last - group.first, panels = panels_of(width);
        const int64_t begin = std::max<int64_t>(mine.begin - done, 0) * PANEL;
        const int64_t end = std::min(std::min(mine.end - done, panels) * PANEL, width);
        done += panels;
        if (begin >= end) continue;
        Number* ring = static_cast<Number*>(op.state) + group.ring;
        // The slot of the position holds what the farthest tap reads, one dilation on stands the next tap's.
        const int64_t slot = group.length ? position % group.length : 0;
        for (int64_t tap = 0; op.out && tap + 1 < taps; ++tap) {
            const int64_t at = slot + tap * group.dilation;
            rows[tap] = ring + (at < group.length ? at : at - group.length) * width;
            // Rows far apart come from memory one by one unless they are asked for together.
            for (int64_t channel = begin; channel < end; channel += 64 / int64_t(sizeof(Number)))
                __builtin_prefetch(rows[tap] + channel, 0, 2);
        }
        const float* weight = static_cast<const float*>(op.weight) + group.weight;
        for (int64_t channel = begin; op.out && channel < end; channel += LANES) {
            const int64_t count = std::min<int64_t>(LANES, end - channel), at = group.first + channel;
            const float* w = weight + channel / PANEL * PANEL * taps + channel % PANEL;
            Vector sums[4] = {};
            if (op.a) sums[0] = load_up_to(op.a + at, count) * load(w + (taps - 1) * PANEL);
            if (op.bias) sums[1] = load_up_to(op.bias + at, count);
            int64_t tap = 0;
            if (count == LANES)
                for (; tap + 5 <= taps; tap += 4)
                    for (int u = 0; u < 4; ++u) sums[u] += load(rows[tap + u] + channel) * load(w + (tap + u) * PANEL);
            for (; tap + 1 < taps; ++tap)
                sums[0] += load_up_to(rows[tap] + channel, count) * load(w + tap * PANEL);
            store_up_to(op.out + at, (sums[0] + sums[1]) + (sums[2] + sums[3]), count);
        }
        if (group.length == 0 || !op.a) continue;
        for (int64_t channel = begin; channel < end; channel += LANES) {
            const int64_t count = std::min<int64_t>(LANES, end - channel);
            store_up_to(ring + slot * width + channel, load_up_to(op.a + group.first + channel, count), count);
        }
    }
}

void convolve(const SeqmixStepOperation& op, int64_t position, int64_t thread, int64_t threads) {
    if (op.type == SEQMIX_WEIGHT_BF16)
        convolve_as<bfloat16>(op, position, thread, threads);
    else
        convolve_as<float>(op, position, thread, threads);
}

void multiply(const SeqmixStepOperation& op) {
    for (int64_t i = 0; i < op.n; i += LANES) {
        Vector a = load(op.a + i);
        if (op.type == 1) a = silu(a);
        Vector y = a * load(op.b + i);
        if (op.c) y += load(op.c + i);
        store(op.out + i, y);
    }
}

void add(const SeqmixStepOperation& op) {
    for (int64_t i = 0; i < op.n; i += LANES) store(op.out + i, load(op.a + i) + load(op.b + i));
}

void silu(const SeqmixStepOperation& op) {
    for (int64_t i = 0; i < op.n; i += LANES) store(op.out + i, silu(load(op.a + i)));
}

void remember(const SeqmixStepOperation& op, int64_t position) {
    const int64_t slot = position % op.slots;
    for (int64_t group = 0; group < op.n; ++group) {
        const int64_t at = (group * op.slots + slot) * op.size;
        std::memcpy(static_cast<float*>(op.state) + at, op.b + group * op.size, sizeof(float) * op.size);
        std::memcpy(static_cast<float*>(op.other) + at, op.c + group * op.size, sizeof(float) * op.size);
    }
}

void attend(const SeqmixStepOperation& op, int64_t position, int64_t thread, int64_t threads) {
    const int64_t used = std::min(position + 1, op.slots), width = op.size;
    const float scale = float(op.low);
    const Share heads = share_of(op.heads, thread, threads);
    thread_local std::vector<float> scores;
    if (int64_t(scores.size()) < used) scores.resize(std::max<int64_t>(used, 2 * int64_t(scores.size())));
    for (int64_t head = heads.begin; head < heads.end; ++head) {
        const int64_t group = head / (op.heads / op.n);
        const float* keys = static_cast<const float*>(op.state) + group * op.slots * width;
        const float* values = static_cast<const float*>(op.other) + group * op.slots * width;
        const float* q = op.a + head * width;
        float highest = -INFINITY;
        for (int64_t slot = 0; slot < used; ++slot) {
            scores[slot] = scale * dot(q, keys + slot * width, width);
            highest = std::max(highest, scores[slot]);
        }
        float total = 0;
        int64_t slot = 0;
        for (; slot + LANES <= used; slot += LANES) {
            const Vector e = exponential(load(scores.data() + slot) - broadcast(highest));
            store(scores.data() + slot, e);
            total += sum_of(e);
        }
        for (; slot < used; ++slot) total += scores[slot] = std::exp(scores[slot] - highest);
        for (int64_t channel = 0; channel < width; channel += LANES) {
            const int64_t count = std::min<int64_t>(LANES, width - channel);
            Vector sum{};
            for (int64_t s = 0; s < used; ++s)
                sum += broadcast(scores[s]) * load_up_to(values + s * width + channel, count);
            store_some(op.out + head * width + channel, sum / broadcast(total), int(count));
        }
    }
}

void lstm_cell(const SeqmixStepOperation& op) {
    float *cell = static_cast<float*>(op.state), *hidden = static_cast<float*>(op.other);
    for (int64_t i = 0; i < op.n; i += LANES) {
        const int64_t count = std::min<int64_t>(LANES, op.n - i);
        const float* gates = op.a + i;
        const Vector enter = sigmoid(load(gates)), forget = sigmoid(load(gates + op.n));
        const Vector c = forget * load_up_to(cell + i, count) + enter * hyperbolic_tangent(load(gates + 2 * op.n));
        const Vector h = sigmoid(load(gates + 3 * op.n)) * hyperbolic_tangent(c);
        store_some(cell + i, c, int(count));
        store_some(hidden + i, h, int(count));
        store(op.out + i, h);
    }
}

void state_space(const SeqmixStepOperation& op, int64_t thread, int64_t threads) {
    const int64_t width = op.k, size = op.size, in_group = op.heads / op.n;
    const float* A = static_cast<const float*>(op.weight);
    const Share heads = share_of(op.heads, thread, threads);
    for (int64_t head = heads.begin; head < heads.end; ++head) {
        const double raw = double(op.b[head]) + double(op.scale[head]);
        const double positive = std::max(raw, 0.0) + std::log1p(std::exp(-std::abs(raw)));
        const float dt = float(std::clamp(positive, op.low, op.high));
        const Vector decay = broadcast(std::exp(dt * A[head]));
        const float *B = op.c + head / in_group * size, *C = op.d + head / in_group * size;
        for (int64_t p = 0; p < width; ++p) {
            float* h = static_cast<float*>(op.state) + (head * width + p) * size;
            const float x = op.a[head * width + p];
            const Vector written = broadcast(dt * x);
            Vector read{};
            int64_t i = 0;
            for (; i + LANES <= size; i += LANES) {
                const Vector after = load(h + i) * decay + written * load(B + i);
                store(h + i, after);
                read += after * load(C + i);
            }
            if (i < size) {
                const int left = int(size - i);
                const Vector after = load_some(h + i, left) * decay + written * load_some(B + i, left);
                store_some(h + i, after, left);
                read += after * load_some(C + i, left);
            }
            op.out[head * width + p] = sum_of(read) + op.bias[head] * x;
        }
    }
}

bool is_shared(const SeqmixStepOperation& op) {
    switch (op.kind) {
        case SEQMIX_STEP_LINEAR:
        case SEQMIX_STEP_ATTEND:
        case SEQMIX_STEP_STATE_SPACE:
            return true;
        case SEQMIX_STEP_CONVOLVE:
            return op.n * op.size >= SHARED_CONVOLUTION;
        default:
            return false;
    }
}

void run(const SeqmixStepOperation& op, const SeqmixStep& step, int64_t thread, int64_t threads) {
    switch (op.kind) {
        case SEQMIX_STEP_EMBED: return embed(op, step.token);
        case SEQMIX_STEP_ANGLES: return angles(op, step.position);
        case SEQMIX_STEP_ROTATE: return rotate(op);
        case SEQMIX_STEP_RMS_NORM: return rms_norm(op);
        case SEQMIX_STEP_LAYER_NORM: return layer_norm(op);
        case SEQMIX_STEP_LINEAR: return linear(op, thread, threads);
        case SEQMIX_STEP_CONVOLVE: return convolve(op, step.position, thread, threads);
        case SEQMIX_STEP_MULTIPLY: return multiply(op);
        case SEQMIX_STEP_ADD: return add(op);
        case SEQMIX_STEP_SILU: return silu(op);
        case SEQMIX_STEP_REMEMBER: return remember(op, step.position);
        case SEQMIX_STEP_ATTEND: return attend(op, step.position, thread, threads);
        case SEQMIX_STEP_LSTM_CELL: return lstm_cell(op);
        case SEQMIX_STEP_STATE_SPACE: return state_space(op, thread, threads);
    }
}

// What one thread does of a step. A barrier stands between two operations unless the first thread does both, or the
// second needs nothing of what the first writes.
void run_all(const SeqmixStep& step, Barrier& barrier, int64_t thread, int64_t threads) {
    for (int64_t i = 0; i < step.num_operations; ++i) {
        const SeqmixStepOperation& op = step.operations[i];
        const bool shared = is_shared(op);
        if (shared)
            run(op, step, thread, threads);
        else if (thread == 0)
            run(op, step, 0, 1);
        if (i + 1 == step.num_operations) break;
        const SeqmixStepOperation& next = step.operations[i + 1];
        if ((!shared && !is_shared(next)) || (next.independent && shared && is_shared(next))) continue;
        if (threads > 1 && next.kind == SEQMIX_STEP_LINEAR) prefetch_linear(next, thread, threads);
        barrier.wait(threads);
    }
}

}  // namespace

EXPORT void KERNEL(seqmix_step)(const SeqmixStep* step) {
    Barrier barrier;
#if defined(_OPENMP)
    if (step->threads > 1) {
#pragma omp parallel num_threads(int(step->threads))
        run_all(*step, barrier, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    run_all(*step, barrier, 0, 1);
}
