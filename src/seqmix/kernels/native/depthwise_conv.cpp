// The dilated depthwise convolution and its gradients, for one instruction set: how tiles are shared out to threads.
// See depthwise_conv.h for the equation, depthwise_conv_tile.h for the sums, depthwise_conv_streams.h for what a tile
// reads and writes.

#include "depthwise_conv.h"

#include <algorithm>
#include <new>
#include <vector>

#include "depthwise_conv_streams.h"
#include "depthwise_conv_tile.h"

namespace {

// Floats that begin at a cache line, so that no vector of a block lies across two.
template <typename Item>
struct LineAllocator {
    using value_type = Item;
    LineAllocator() = default;
    template <typename Other>
    LineAllocator(const LineAllocator<Other>&) {}
    Item* allocate(size_t count) { return static_cast<Item*>(::operator new(count * sizeof(Item), std::align_val_t(64))); }
    void deallocate(Item* items, size_t) { ::operator delete(items, std::align_val_t(64)); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};

using Floats = std::vector<float, LineAllocator<float>>;

// Weights of each block of channels as (kernel, BLOCK), zero beyond the group, then the block's bias.
struct Packed {
    Floats numbers;
    std::vector<int64_t> start;  // of each group

    explicit Packed(const SeqmixConv& conv) {
        int64_t blocks = 0;
        for (int64_t g = 0; g < conv.num_groups; ++g) {
            start.push_back(blocks * size(conv));
            blocks += (conv.groups[g].last - conv.groups[g].first + BLOCK - 1) / BLOCK;
        }
        numbers.assign(blocks * size(conv), 0.0f);
        if (!conv.weight) return;
        for (int64_t g = 0; g < conv.num_groups; ++g)
            for (int64_t c = conv.groups[g].first; c < conv.groups[g].last; ++c) {
                float* numbers = block(conv, g, c) + (c - conv.groups[g].first) % BLOCK;
                for (int64_t k = 0; k < conv.kernel; ++k)
                    numbers[k * BLOCK] = conv.weight[c * conv.kernel + (conv.turned ? conv.kernel - 1 - k : k)];
                if (conv.bias) numbers[conv.kernel * BLOCK] = conv.bias[c];
            }
    }

    static int64_t size(const SeqmixConv& conv) { return (conv.kernel + 1) * BLOCK; }

    float* block(const SeqmixConv& conv, int64_t group, int64_t channel) {
        return numbers.data() + start[group] + (channel - conv.groups[group].first) / BLOCK * size(conv);
    }
};

// Rows of a buffer for the sources of a tile, with the rows beyond them that whole registers read.
int64_t source_rows(const SeqmixConv& conv) { return TILE + conv.kernel + GRADIENTS; }

template <typename Number>
void convolve(const SeqmixConv& conv) {
    const std::vector<Run> runs = find_runs(conv);
    const std::vector<Piece> pieces = cut(conv, runs);
    const int64_t count = int64_t(pieces.size());
    Packed weights(conv);
#pragma omp parallel num_threads(conv.threads) if (conv.threads > 1)
    {
        Floats values(source_rows(conv) * BLOCK);
        alignas(64) float results[(TILE + OUTPUTS) * BLOCK];
#pragma omp for schedule(static)
        for (int64_t p = 0; p < count; ++p)
            for_each_tile(conv, runs, pieces[p], [&](const Tile& tile) {
                for (int64_t channel = tile.group.first; channel < tile.group.last; channel += BLOCK) {
                    const int64_t channels = std::min<int64_t>(BLOCK, tile.group.last - channel);
                    const float* weight = weights.block(conv, pieces[p].group, channel);
                    pack_sources<Number>(conv, tile, channel, channels, values.data());
                    convolve_tile(weight + tile.first * BLOCK, weight + conv.kernel * BLOCK, tile.taps(), values.data(),
                                  tile.outputs, results);
                    write_results<Number>(conv, tile.run.row, tile.t, tile.group.dilation, tile.outputs, channel,
                                          channels, results);
                }
            });
    }
}

template <typename Number>
void weight_gradient(const SeqmixConv& conv) {
    const std::vector<Run> runs = find_runs(conv);
    const std::vector<Piece> pieces = cut(conv, runs);
    const int64_t count = int64_t(pieces.size());
    const int64_t threads = std::max<int64_t>(1, std::min(conv.threads, count));
    // Each thread sums a fixed stretch of the pieces, and the stretches are added in order: the result is the same
    // every time.
    std::vector<Packed> totals(threads, Packed(conv));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Floats values(source_rows(conv) * BLOCK);
        alignas(64) float grads[(TILE + GRADIENTS) * BLOCK];
#pragma omp for schedule(static)
        for (int64_t thread = 0; thread < threads; ++thread)
            for (int64_t p = count * thread / threads; p < count * (thread + 1) / threads; ++p)
                for_each_tile(conv, runs, pieces[p], [&](const Tile& tile) {
                    for (int64_t channel = tile.group.first; channel < tile.group.last; channel += BLOCK) {
                        const int64_t channels = std::min<int64_t>(BLOCK, tile.group.last - channel);
                        float* total = totals[thread].block(conv, pieces[p].group, channel);
                        pack_sources<Number>(conv, tile, channel, channels, values.data());
                        read_values<Number>(SEQMIX_PLAIN, &conv.grad, tile.run.row, tile.t, tile.group.dilation,
                                            tile.outputs, channel, channels, grads);
                        set_zero(grads + tile.outputs * BLOCK, GRADIENTS);
                        set_zero(values.data() + tile.sources() * BLOCK, GRADIENTS);
                            correlate_tile(total + tile.first * BLOCK, tile.taps(), grads, values.data(), tile.outputs);
                        if (conv.grad_bias) {
                            float* bias = total + conv.kernel * BLOCK;
                            for (int v = 0; v < BLOCK; v += LANES) {
                                Vector sum{};
                                for (int64_t i = 0; i < tile.outputs; ++i) sum += load(grads + i * BLOCK + v);
                                store(bias + v, load(bias + v) + sum);
                            }
                        }
                    }
                });
    }
    for (int64_t g = 0; g < conv.num_groups; ++g)
        for (int64_t c = conv.groups[g].first; c < conv.groups[g].last; ++c) {
            const int64_t lane = (c - conv.groups[g].first) % BLOCK;
            for (int64_t k = 0; k <= conv.kernel; ++k) {
                float sum = 0.0f;
                for (Packed& total : totals) sum += total.block(conv, g, c)[k * BLOCK + lane];
                if (k < conv.kernel)
                    conv.grad_weight[c * conv.kernel + k] = sum;
                else if (conv.grad_bias)
                    conv.grad_bias[c] = sum;
            }
        }
}

// The rings once the call's values have followed those of the past; zero where the last document had not begun.
template <typename Number>
void fill_rings(const SeqmixConv& conv) {
    const int64_t count = conv.batch * conv.num_groups;
#pragma omp parallel for schedule(static) num_threads(conv.threads) if (conv.threads > 1)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = i / conv.num_groups;
        const SeqmixConvGroup& group = conv.groups[i % conv.num_groups];
        const int64_t width = group.last - group.first, start = row * conv.past_size + group.ring;
        const int64_t after = conv.position_after[row];
        const Number* before = conv.past ? static_cast<const Number*>(conv.past) + start : nullptr;
        Number* ring = static_cast<Number*>(conv.past_after) + start;
        alignas(64) float values[BLOCK];
        for (int64_t back = 1; back <= group.length; ++back) {
            const int64_t position = after - back, t = conv.time - back;
            Number* slot = ring + (position % group.length + group.length) % group.length * width;
            if (position < 0 || (t < 0 && !before)) {
                std::fill_n(slot, width, Number{});
            } else if (t < 0) {
                std::copy_n(before + position % group.length * width, width, slot);
            } else if (conv.source == SEQMIX_PLAIN) {
                std::copy_n(at<Number>(conv.in[0], row, t, group.first), width, slot);
            } else {
                for (int64_t c = 0; c < width; c += BLOCK) {
                    const int64_t channels = std::min<int64_t>(BLOCK, width - c);
                    read_values<Number>(conv.source, conv.in, row, t, 1, 1, group.first + c, channels, values);
                    for_each_vector(channels, [&](auto lanes, int v) { lanes.write(slot + c + v, load(values + v)); });
                }
            }
        }
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

EXPORT void KERNEL(seqmix_depthwise_conv_past)(const SeqmixConv* conv) {
    if (conv->storage == SEQMIX_BFLOAT16)
        fill_rings<bfloat16>(*conv);
    else
        fill_rings<float>(*conv);
}
