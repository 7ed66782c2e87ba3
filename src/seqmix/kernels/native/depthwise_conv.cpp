// The depthwise dilated convolution and its gradients, for one instruction set. See depthwise_conv.h.
//
// Vectors run over channels, which are contiguous, so that any dilation reads whole vectors and nothing is
// transposed. A tile is several outputs that are one dilation apart: output i and tap k meet source i + k, so a
// source that is loaded once serves as many products as the tile has (i, k) with that sum. Pointers to the
// sources of a tile are looked up first: inside the run, in the ring of the past, or a row of zeros.

#include "depthwise_conv.h"

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

// How many outputs and taps are held in registers at once.
constexpr int OUTPUTS = REGISTERS == 32 ? 16 : 8;
constexpr int TAPS = REGISTERS == 32 ? 8 : 4;
constexpr int FEW_OUTPUTS = 4;
// The weight gradient's tile: longer, because its sums are written back once a tile.
constexpr int GRADIENT_OUTPUTS = 64;

// A stretch of one row that nothing crosses; the run 0 of a row may continue the past.
struct Run {
    int64_t row, begin, end;
    bool continues;
};

std::vector<Run> find_runs(const SeqmixConv& conv) {
    std::vector<Run> runs;
    for (int64_t row = 0; row < conv.batch; ++row) {
        const int64_t* ids = conv.runs ? conv.runs + row * conv.time : nullptr;
        int64_t begin = 0;
        for (int64_t t = 1; t <= conv.time; ++t) {
            if (t == conv.time || (ids && ids[t] != ids[begin])) {
                const bool first = !ids || ids[begin] == 0;
                runs.push_back({row, begin, t, conv.past != nullptr && first});
                begin = t;
            }
        }
    }
    return runs;
}

template <typename Number>
struct Sources {
    const SeqmixConv& conv;
    const SeqmixConvGroup& group;
    const Run& run;
    const Number* zeros;

    // The group's first channel at time t of the run's row; zeros outside of the run and its past.
    const Number* operator()(int64_t t) const {
        if (t >= run.begin && t < run.end)
            return static_cast<const Number*>(conv.x) + run.row * conv.x_batch + t * conv.x_time + group.first;
        if (t >= 0 || !run.continues || -t > group.length) return zeros;
        const int64_t position = conv.position[run.row] + t;
        if (position < 0) return zeros;
        return static_cast<const Number*>(conv.past) + run.row * conv.past_size + group.ring +
               position % group.length * (group.last - group.first);
    }

    // The first time that can be anything but zero.
    int64_t begin() const { return run.continues ? std::min<int64_t>(run.begin, -group.length) : run.begin; }
};

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }

// The taps [first, last) that reach a source which can be other than zero, for outputs at t, t + d, ...
struct TapRange {
    int64_t first, last;
};

template <typename Number>
TapRange taps_of(const Sources<Number>& sources, int64_t t, int64_t outputs, int64_t kernel) {
    const SeqmixConvGroup& group = sources.group;
    // Sources of the last output reach farthest ahead, those of the first farthest back.
    const int64_t last_output = t + (outputs - 1) * group.dilation + group.offset;
    const int64_t first = -floor_div(last_output - sources.begin(), group.dilation);
    const int64_t last = floor_div(sources.run.end - 1 - (t + group.offset), group.dilation) + 1;
    return {std::clamp<int64_t>(first, 0, kernel), std::clamp<int64_t>(last, 0, kernel)};
}

template <int COUNT, int OUT, int WIDE, typename Load, typename Number>
inline __attribute__((always_inline)) void add_taps(
    Vector (&sums)[OUT][WIDE], const float* weight, int64_t dim, const Number* const* sources, int64_t channel,
    const Load& read) {
    Vector w[COUNT][WIDE];
#pragma GCC unroll 16
    for (int k = 0; k < COUNT; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; ++v) w[k][v] = read(weight + k * dim + channel + v * LANES);
#pragma GCC unroll 32
    for (int j = 0; j < OUT + COUNT - 1; ++j) {
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; ++v) {
            const Vector x = read(sources[j] + channel + v * LANES);
#pragma GCC unroll 16
            for (int k = 0; k < COUNT; ++k)
                if (j - k >= 0 && j - k < OUT) sums[j - k][v] += x * w[k][v];
        }
    }
}

template <int OUT, int WIDE, typename Load, typename Store, typename Number>
inline __attribute__((always_inline)) void convolve_channels(
    const SeqmixConv& conv, const float* weight, const float* bias, TapRange taps, const Number* const* sources,
    Number* const* results, int count, int64_t channel, const Load& read, const Store& write) {
    Vector sums[OUT][WIDE];
#pragma GCC unroll 16
    for (int i = 0; i < OUT; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; ++v) sums[i][v] = bias ? read(bias + channel + v * LANES) : Vector{};
    // Fewer taps where more vectors of channels are held.
    constexpr int BLOCK = std::max(1, TAPS / WIDE);
    int64_t k = taps.first;
    for (; k + BLOCK <= taps.last; k += BLOCK)
        add_taps<BLOCK, OUT, WIDE>(sums, weight + k * conv.dim, conv.dim, sources + (k - taps.first), channel, read);
    if constexpr (BLOCK > 4)
        if (k + 4 <= taps.last) {
            add_taps<4, OUT, WIDE>(sums, weight + k * conv.dim, conv.dim, sources + (k - taps.first), channel, read);
            k += 4;
        }
    if constexpr (BLOCK > 2)
        if (k + 2 <= taps.last) {
            add_taps<2, OUT, WIDE>(sums, weight + k * conv.dim, conv.dim, sources + (k - taps.first), channel, read);
            k += 2;
        }
    for (; k < taps.last; ++k)
        add_taps<1, OUT, WIDE>(sums, weight + k * conv.dim, conv.dim, sources + (k - taps.first), channel, read);
#pragma GCC unroll 16
    for (int i = 0; i < OUT; ++i)
        if (i < count)
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; ++v) write(results[i] + channel + v * LANES, sums[i][v]);
}

struct Whole {
    template <typename Number>
    Vector operator()(const Number* from) const { return load(from); }
    template <typename Number>
    void operator()(Number* to, Vector value) const { store(to, value); }
};

struct Some {
    int count;
    template <typename Number>
    Vector operator()(const Number* from) const { return load_some(from, count); }
    template <typename Number>
    void operator()(Number* to, Vector value) const { store_some(to, value, count); }
};

template <int OUT, int WIDE, typename Number>
void convolve_tile(const SeqmixConv& conv, const Sources<Number>& at, int64_t t, int count, const Number** sources) {
    const SeqmixConvGroup& group = at.group;
    const int64_t channels = group.last - group.first;
    const TapRange taps = taps_of(at, t, count, conv.kernel);
    Number* results[OUT];
    for (int i = 0; i < count; ++i)
        results[i] = static_cast<Number*>(conv.y) + at.run.row * conv.y_batch +
                     (t + i * group.dilation) * conv.y_time + group.first;
    const int64_t needed = taps.last - taps.first + count - 1;
    const int64_t from = t + group.offset + taps.first * group.dilation;
    for (int64_t j = 0; j < needed; ++j) sources[j] = at(from + j * group.dilation);
    for (int64_t j = needed; j < taps.last - taps.first + OUT - 1; ++j) sources[j] = at.zeros;
    const float* weight = conv.weight + group.first;
    const float* bias = conv.bias ? conv.bias + group.first : nullptr;
    if (channels < LANES) {
        const Some some{int(channels)};
        convolve_channels<OUT, 1>(conv, weight, bias, taps, sources, results, count, 0, some, some);
        return;
    }
    const Whole whole;
    int64_t c = 0;
    for (; c + WIDE * LANES <= channels; c += WIDE * LANES)
        convolve_channels<OUT, WIDE>(conv, weight, bias, taps, sources, results, count, c, whole, whole);
    for (; c + LANES <= channels; c += LANES)
        convolve_channels<OUT, 1>(conv, weight, bias, taps, sources, results, count, c, whole, whole);
    // What is left of a vector is computed with the channels before it once more.
    if (c < channels)
        convolve_channels<OUT, 1>(conv, weight, bias, taps, sources, results, count, channels - LANES, whole, whole);
}

// One piece of work: outputs begin ... end - 1 of a run, for one group.
struct Piece {
    int64_t run, group, begin, end;
};

std::vector<Piece> cut(const SeqmixConv& conv, const std::vector<Run>& runs, int64_t outputs) {
    std::vector<Piece> pieces;
    for (int64_t r = 0; r < int64_t(runs.size()); ++r)
        for (int64_t g = 0; g < conv.num_groups; ++g) {
            const int64_t length = runs[r].end - runs[r].begin;
            // A dilation beyond the run makes every output a tile of its own.
            const int64_t dilation = std::min(conv.groups[g].dilation, length);
            const int64_t step = std::max<int64_t>(outputs * dilation, 64);
            for (int64_t begin = runs[r].begin; begin < runs[r].end; begin += step)
                pieces.push_back({r, g, begin, std::min(begin + step, runs[r].end)});
        }
    return pieces;
}

template <typename Number>
void convolve(const SeqmixConv& conv) {
    const std::vector<Run> runs = find_runs(conv);
    const std::vector<Piece> pieces = cut(conv, runs, OUTPUTS);
    const std::vector<Number> zeros(conv.dim + LANES, Number{});
    const int64_t count = int64_t(pieces.size());
#pragma omp parallel num_threads(conv.threads) if (conv.threads > 1)
    {
        std::vector<const Number*> sources(conv.kernel + OUTPUTS);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < count; ++p) {
            const Piece& piece = pieces[p];
            const SeqmixConvGroup& group = conv.groups[piece.group];
            const Sources<Number> at{conv, group, runs[piece.run], zeros.data()};
            const int64_t phases = std::min(group.dilation, piece.end - piece.begin);
            for (int64_t phase = 0; phase < phases; ++phase) {
                int64_t t = piece.begin + phase;
                int64_t left = (piece.end - t + group.dilation - 1) / group.dilation;
                while (left > 0) {
                    int64_t done;
                    if (left > FEW_OUTPUTS) {
                        done = std::min<int64_t>(left, OUTPUTS);
                        convolve_tile<OUTPUTS, 1>(conv, at, t, int(done), sources.data());
                    } else if (left > 1) {
                        done = left;
                        convolve_tile<FEW_OUTPUTS, 2>(conv, at, t, int(done), sources.data());
                    } else {
                        done = 1;
                        convolve_tile<1, 4>(conv, at, t, 1, sources.data());
                    }
                    t += done * group.dilation;
                    left -= done;
                }
            }
        }
    }
}

// The sums of COUNT taps over a tile: sum_i grad[i] * source[i + k].
template <int COUNT, typename Load, typename Number>
inline __attribute__((always_inline)) void correlate(
    Vector (&sums)[COUNT], const Number* const* grads, const Number* const* sources, int outputs, int64_t channel,
    const Load& read) {
    constexpr int BLOCK = REGISTERS == 32 ? 8 : 4;
    for (int i = 0; i < outputs; i += BLOCK) {
        Vector g[BLOCK];
#pragma GCC unroll 8
        for (int b = 0; b < BLOCK; ++b) g[b] = read(grads[i + b] + channel);
#pragma GCC unroll 32
        for (int j = 0; j < BLOCK + COUNT - 1; ++j) {
            const Vector x = read(sources[i + j] + channel);
#pragma GCC unroll 16
            for (int k = 0; k < COUNT; ++k)
                if (j - k >= 0 && j - k < BLOCK) sums[k] += x * g[j - k];
        }
    }
}

template <int COUNT, typename Load, typename Store, typename Number>
inline __attribute__((always_inline)) void add_correlation(
    float* total, int64_t dim, const Number* const* grads, const Number* const* sources, int outputs, int64_t channel,
    const Load& read, const Store& write) {
    Vector sums[COUNT] = {};
    correlate<COUNT>(sums, grads, sources, outputs, channel, read);
#pragma GCC unroll 16
    for (int k = 0; k < COUNT; ++k) {
        float* to = total + k * dim + channel;
        write(to, read(const_cast<const float*>(to)) + sums[k]);
    }
}

template <typename Load, typename Store, typename Number>
inline __attribute__((always_inline)) void correlate_channels(
    float* total, int64_t dim, TapRange taps, const Number* const* grads, const Number* const* sources, int outputs,
    int64_t channel, const Load& read, const Store& write) {
    constexpr int BLOCK = REGISTERS == 32 ? 16 : 8;
    int64_t k = taps.first;
#define SEQMIX_TAPS(COUNT)                                                                                      \
    add_correlation<COUNT>(total + k * dim, dim, grads, sources + (k - taps.first), outputs, channel, read, write); \
    k += COUNT
    while (k + BLOCK <= taps.last) { SEQMIX_TAPS(BLOCK); }
    if (BLOCK > 8 && k + 8 <= taps.last) { SEQMIX_TAPS(8); }
    if (k + 4 <= taps.last) { SEQMIX_TAPS(4); }
    if (k + 2 <= taps.last) { SEQMIX_TAPS(2); }
    if (k < taps.last) { SEQMIX_TAPS(1); }
#undef SEQMIX_TAPS
}

template <typename Number>
void weight_gradient(const SeqmixConv& conv) {
    const std::vector<Run> runs = find_runs(conv);
    const std::vector<Piece> pieces = cut(conv, runs, GRADIENT_OUTPUTS);
    const std::vector<Number> zeros(conv.dim + LANES, Number{});
    const int64_t count = int64_t(pieces.size());
    const int64_t size = conv.kernel * conv.dim;
    const int64_t threads = std::max<int64_t>(1, std::min(conv.threads, count));
    // Each thread sums a fixed stretch of the pieces and the stretches are added in order, so that the result is
    // the same every time.
    std::vector<float> partial((threads - 1) * size, 0.0f);
    std::fill_n(conv.grad_weight, size, 0.0f);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<const Number*> sources(conv.kernel + GRADIENT_OUTPUTS + OUTPUTS);
        const Number* grads[GRADIENT_OUTPUTS + OUTPUTS];
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; ++thread) {
            float* total = thread ? partial.data() + (thread - 1) * size : conv.grad_weight;
            for (int64_t p = count * thread / threads; p < count * (thread + 1) / threads; ++p) {
                const Piece& piece = pieces[p];
                const SeqmixConvGroup& group = conv.groups[piece.group];
                const Sources<Number> at{conv, group, runs[piece.run], zeros.data()};
                const int64_t channels = group.last - group.first;
                const int64_t phases = std::min(group.dilation, piece.end - piece.begin);
                for (int64_t phase = 0; phase < phases; ++phase) {
                    int64_t t = piece.begin + phase;
                    int64_t left = (piece.end - t + group.dilation - 1) / group.dilation;
                    for (; left > 0; left -= GRADIENT_OUTPUTS, t += GRADIENT_OUTPUTS * group.dilation) {
                        const int outputs = int(std::min<int64_t>(left, GRADIENT_OUTPUTS));
                        const int padded = (outputs + 7) / 8 * 8;
                        const TapRange taps = taps_of(at, t, outputs, conv.kernel);
                        for (int i = 0; i < padded; ++i)
                            grads[i] = i < outputs ? static_cast<const Number*>(conv.y) + at.run.row * conv.y_batch +
                                                         (t + i * group.dilation) * conv.y_time + group.first
                                                   : zeros.data();
                        const int64_t reach = taps.last - taps.first;
                        const int64_t from = t + group.offset + taps.first * group.dilation;
                        for (int64_t j = 0; j < reach + padded - 1; ++j)
                            sources[j] = j < reach + outputs - 1 ? at(from + j * group.dilation) : zeros.data();
                        float* sums = total + group.first;
                        if (channels < LANES) {
                            const Some some{int(channels)};
                            correlate_channels(sums, conv.dim, taps, grads, sources.data(), padded, 0, some, some);
                            continue;
                        }
                        const Whole whole;
                        int64_t c = 0;
                        for (; c + LANES <= channels; c += LANES)
                            correlate_channels(sums, conv.dim, taps, grads, sources.data(), padded, c, whole, whole);
                        if (c < channels) {
                            const Some rest{int(channels - c)};
                            correlate_channels(sums, conv.dim, taps, grads, sources.data(), padded, c, rest, rest);
                        }
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < size; ++i)
            for (int64_t thread = 1; thread < threads; ++thread) conv.grad_weight[i] += partial[(thread - 1) * size + i];
    }
}

}  // namespace

EXPORT void KERNEL(seqmix_depthwise_conv)(const SeqmixConv* conv) {
    if (conv->storage == SEQMIX_BFLOAT16)
        convolve<bfloat16>(*conv);
    else
        convolve<float>(*conv);
}

EXPORT void KERNEL(seqmix_depthwise_conv_weight_gradient)(const SeqmixConv* conv) {
    if (conv->storage == SEQMIX_BFLOAT16)
        weight_gradient<bfloat16>(*conv);
    else
        weight_gradient<float>(*conv);
}
