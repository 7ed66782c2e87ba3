// Where the numbers of a tile come from and go to: runs of documents, the rings of the past, gates, and storage types.
#pragma once

#include <algorithm>
#include <vector>

#include "depthwise_conv.h"
#include "depthwise_conv_tile.h"
#include "vector_math.h"

namespace {

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

// One piece of work: outputs begin ... end - 1 of a run, for one group.
struct Piece {
    int64_t run, group, begin, end;
};

std::vector<Piece> cut(const SeqmixConv& conv, const std::vector<Run>& runs) {
    std::vector<Piece> pieces;
    for (int64_t r = 0; r < int64_t(runs.size()); ++r)
        for (int64_t g = 0; g < conv.num_groups; ++g) {
            const int64_t length = runs[r].end - runs[r].begin;
            const int64_t step = TILE * std::min(conv.groups[g].dilation, length);
            for (int64_t begin = runs[r].begin; begin < runs[r].end; begin += step)
                pieces.push_back({r, g, begin, std::min(begin + step, runs[r].end)});
        }
    return pieces;
}

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }

// Outputs t, t + dilation, ... of a run, and the taps first ... last - 1 that reach any source of theirs.
struct Tile {
    const SeqmixConvGroup& group;
    const Run& run;
    int64_t t, outputs, first, last;

    Tile(const SeqmixConvGroup& group, const Run& run, int64_t kernel, int64_t t, int64_t outputs)
        : group(group), run(run), t(t), outputs(outputs) {
        // Sources of the last output reach farthest ahead, those of the first farthest back.
        const int64_t begin = run.continues ? std::min<int64_t>(run.begin, -group.length) : run.begin;
        const int64_t ahead = t + (outputs - 1) * group.dilation + group.offset;
        first = std::clamp<int64_t>(-floor_div(ahead - begin, group.dilation), 0, kernel);
        last = std::clamp<int64_t>(floor_div(run.end - 1 - (t + group.offset), group.dilation) + 1, first, kernel);
    }

    int64_t taps() const { return last - first; }
    int64_t sources() const { return taps() ? taps() + outputs - 1 : 0; }
    int64_t source(int64_t j) const { return t + group.offset + (first + j) * group.dilation; }
};

// Calls work(tile) for every tile of a piece.
template <typename Work>
void for_each_tile(const SeqmixConv& conv, const std::vector<Run>& runs, const Piece& piece, const Work& work) {
    const SeqmixConvGroup& group = conv.groups[piece.group];
    const int64_t phases = std::min(group.dilation, piece.end - piece.begin);
    for (int64_t phase = 0; phase < phases; ++phase) {
        const int64_t t = piece.begin + phase;
        const int64_t outputs = (piece.end - t + group.dilation - 1) / group.dilation;
        work(Tile(group, runs[piece.run], conv.kernel, t, outputs));
    }
}

template <typename Number>
const Number* at(const SeqmixStream& stream, int64_t row, int64_t t, int64_t channel) {
    return static_cast<const Number*>(stream.data) + row * stream.batch_stride + t * stream.time_stride + channel;
}

template <typename Number>
Number* to(const SeqmixStream& stream, int64_t row, int64_t t, int64_t channel) {
    return static_cast<Number*>(stream.data) + row * stream.batch_stride + t * stream.time_stride + channel;
}

struct Whole {
    template <typename Number>
    Vector read(const Number* from) const { return load(from); }
    template <typename Number>
    void write(Number* to, Vector value) const { store(to, value); }
};

struct Some {
    int count;
    template <typename Number>
    Vector read(const Number* from) const { return load_some(from, count); }
    template <typename Number>
    void write(Number* to, Vector value) const { store_some(to, value, count); }
};

// Calls work(lanes, first channel of the vector) for the vectors of a block of `channels` channels.
template <typename Work>
inline __attribute__((always_inline)) void for_each_vector(int64_t channels, const Work& work) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
        const int64_t left = channels - v * LANES;
        if (left >= LANES)
            work(Whole{}, v * LANES);
        else if (left > 0)
            work(Some{int(left)}, v * LANES);
    }
}

// Channels from those at hand to those that are asked for early, into the second cache: the rows of a tile are more
// streams than the processor foresees, and more than its first cache can hold at one distance.
constexpr int64_t AHEAD = 4 * BLOCK;

// The values of `count` positions, `step` apart, a block of channels each, in consecutive rows of floats; channels
// beyond the group become zero.
template <typename Number>
void read_values(int64_t source, const SeqmixStream* in, int64_t row, int64_t t, int64_t step, int64_t count,
                 int64_t channel, int64_t channels, float* values) {
    const Number* a = at<Number>(in[0], row, t, channel);
    const Number* b = source == SEQMIX_PLAIN ? a : at<Number>(in[1], row, t, channel);
    const int64_t a_step = in[0].time_stride * step;
    const int64_t b_step = source == SEQMIX_PLAIN ? 0 : in[1].time_stride * step;
    const auto each_row = [&](const auto& value) {
        for (int64_t i = 0; i < count; ++i, values += BLOCK, a += a_step, b += b_step) {
            __builtin_prefetch(a + AHEAD, 0, 2);
            if (source != SEQMIX_PLAIN) __builtin_prefetch(b + AHEAD, 0, 2);
            value();
        }
    };
    if (channels < BLOCK) std::memset(values, 0, sizeof(float) * BLOCK * count);
    if (source == SEQMIX_PLAIN && channels == BLOCK)
        each_row([&] {
#pragma GCC unroll 4
            for (int v = 0; v < BLOCK; v += LANES) store(values + v, load(a + v));
        });
    else if (source == SEQMIX_PLAIN)
        each_row([&] { for_each_vector(channels, [&](auto lanes, int v) { store(values + v, lanes.read(a + v)); }); });
    else
        each_row([&] {
            for_each_vector(channels, [&](auto lanes, int v) { store(values + v, lanes.read(a + v) * lanes.read(b + v)); });
        });
}

inline void set_zero(float* value, int64_t rows) { std::memset(value, 0, sizeof(float) * BLOCK * rows); }

// The sources of a tile in consecutive rows: from the run, from the ring of its past, or zero.
template <typename Number>
void pack_sources(const SeqmixConv& conv, const Tile& tile, int64_t channel, int64_t channels, float* values) {
    const Run& run = tile.run;
    const SeqmixConvGroup& group = tile.group;
    const int64_t count = tile.sources();
    const int64_t inside = std::clamp<int64_t>(-floor_div(tile.source(0) - run.begin, group.dilation), 0, count);
    const int64_t beyond =
        std::clamp<int64_t>(floor_div(run.end - 1 - tile.source(0), group.dilation) + 1, inside, count);
    for (int64_t j = 0; j < inside; ++j) {
        float* value = values + j * BLOCK;
        const int64_t t = tile.source(j);
        const int64_t position = run.continues ? conv.position[run.row] + t : -1;
        if (position < 0 || t >= 0 || -t > group.length) {
            set_zero(value, 1);
            continue;
        }
        const int64_t width = group.last - group.first;
        const Number* ring = static_cast<const Number*>(conv.past) + run.row * conv.past_size + group.ring +
                             position % group.length * width + channel - group.first;
        std::memset(value, 0, sizeof(float) * BLOCK);
        for_each_vector(channels, [&](auto lanes, int c) { store(value + c, lanes.read(ring + c)); });
    }
    read_values<Number>(conv.source, conv.in, run.row, tile.source(inside), group.dilation, beyond - inside, channel,
                        channels, values + inside * BLOCK);
    set_zero(values + beyond * BLOCK, count - beyond);
}

// How many tensors each sink reads and writes.
constexpr int FACTORS[] = {0, 1, 2, 2, 2, 3};
constexpr int RESULTS[] = {1, 1, 2, 2, 1, 3};

// Writes z of `count` positions, `step` apart, as the sink says.
template <typename Number>
void write_results(const SeqmixConv& conv, int64_t row, int64_t t, int64_t step, int64_t count, int64_t channel,
                   int64_t channels, const float* z) {
    const int factors = FACTORS[conv.sink], results = RESULTS[conv.sink];
    const Number* with[3] = {};
    Number* out[3] = {};
    int64_t with_step[3] = {}, out_step[3] = {};
    for (int f = 0; f < factors; ++f) {
        with[f] = at<Number>(conv.with[f], row, t, channel);
        with_step[f] = conv.with[f].time_stride * step;
    }
    for (int r = 0; r < results; ++r) {
        out[r] = to<Number>(conv.out[r], row, t, channel);
        out_step[r] = conv.out[r].time_stride * step;
    }
    const auto each_row = [&](const auto& write) {
        for (int64_t i = 0; i < count; ++i, z += BLOCK) {
            for (int r = 0; r < results; ++r) __builtin_prefetch(out[r] + AHEAD, 1, 2);
            for (int f = 0; f < factors; ++f) __builtin_prefetch(with[f] + AHEAD, 0, 2);
            write();
            for (int r = 0; r < results; ++r) out[r] += out_step[r];
            for (int f = 0; f < factors; ++f) with[f] += with_step[f];
        }
    };
    const auto each_vector = [&](const auto& write) {
        each_row([&] { for_each_vector(channels, write); });
    };
    switch (conv.sink) {
        case SEQMIX_STORE:
            if (channels == BLOCK)
                each_row([&] {
#pragma GCC unroll 4
                    for (int v = 0; v < BLOCK; v += LANES) store(out[0] + v, load(z + v));
                });
            else
                each_vector([&](auto lanes, int v) { lanes.write(out[0] + v, load(z + v)); });
            break;
        case SEQMIX_TIMES:
            each_vector([&](auto lanes, int v) { lanes.write(out[0] + v, load(z + v) * lanes.read(with[0] + v)); });
            break;
        case SEQMIX_TIMES_BOTH:
            each_vector([&](auto lanes, int v) {
                const Vector first = load(z + v) * lanes.read(with[0] + v);
                const Vector second = load(z + v) * lanes.read(with[1] + v);
                lanes.write(out[0] + v, first);
                lanes.write(out[1] + v, second);
            });
            break;
        case SEQMIX_TIMES_GRADIENT:
            each_vector([&](auto lanes, int v) {
                const Vector grad = lanes.read(with[0] + v), through = grad * lanes.read(with[1] + v);
                lanes.write(out[0] + v, load(z + v) * grad);
                lanes.write(out[1] + v, through);
            });
            break;
        case SEQMIX_GATE:
            each_vector([&](auto lanes, int v) {
                const Vector gate = lanes.read(with[0] + v);
                lanes.write(out[0] + v, load(z + v) * gate * sigmoid(gate) * lanes.read(with[1] + v));
            });
            break;
        case SEQMIX_GATE_GRADIENT:
            each_vector([&](auto lanes, int v) {
                const Vector gate = lanes.read(with[0] + v), s = sigmoid(gate), value = lanes.read(with[1] + v);
                const Vector grad = lanes.read(with[2] + v), g = load(z + v) * grad;
                const Vector slope = s * (broadcast(1.0f) + gate * (broadcast(1.0f) - s));
                lanes.write(out[0] + v, g * slope * value);
                lanes.write(out[1] + v, g * gate * s);
                lanes.write(out[2] + v, grad * gate * s * value);
            });
            break;
    }
}

}  // namespace
