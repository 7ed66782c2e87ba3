// Causal linear attention with decays, for one instruction set. See linear_attention.h.
//
// The state is never multiplied position by position: it rests divided by the decays since the last renewal, so that
// a value enters multiplied by their inverse and an output leaves multiplied by them. That is exact but for rounding,
// because floats keep their digits at any scale; before the scale could leave their range the state is renewed. Two
// multiply-adds remain for each number of the state. A tile of it stays in registers for a chunk of time.

#include "linear_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "vector_math.h"

namespace {

constexpr int CHUNK = SEQMIX_ATTENTION_CHUNK;
constexpr int KEYS = 4;
constexpr int WIDE = REGISTERS == 32 ? 4 : 2;
// Scales stay within e^-30 ... e^30, so that a product of two scaled numbers has room on either side.
constexpr float LARGEST_LOG = 30.0f;
static_assert(CHUNK % LANES == 0, "whole vectors of scales");

int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Zeroed numbers whose rows of whole vectors never cross a cache line.
class Aligned {
public:
    explicit Aligned(int64_t size) : numbers(static_cast<float*>(::operator new(size * sizeof(float), ALIGNMENT))) {
        std::fill_n(numbers, size, 0.0f);
    }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    ~Aligned() { ::operator delete(numbers, ALIGNMENT); }
    float* data() const { return numbers; }

private:
    static constexpr std::align_val_t ALIGNMENT{64};
    float* numbers;
};

// What the numbers of a chunk are multiplied by, by position in the order in which time runs.
struct Scales {
    float renewal[CHUNK];             // the state before a position; mostly 1
    float inwards[CHUNK];             // a value when it enters
    float outwards[CHUNK];            // an output when it leaves
    float end;                        // the state after the chunk
};

struct Scratch {
    int64_t keys, values;             // rounded up to whole tiles; the rest is zero
    Aligned state;                    // (keys, values)
    Aligned key, query;               // (keys / KEYS, CHUNK, KEYS)
    Aligned value, output;            // (CHUNK, values)
    Scales scales;
    Aligned against_value;            // (CHUNK, values)
    Aligned history;                  // (CHUNK, KEYS, WIDE vectors): one tile of the other call's states
    Aligned product;                  // (CHUNK, LANES), sums over the tiles
    Scales against;

    explicit Scratch(const SeqmixLinearAttention& call)
        : keys(round_up(call.keys, KEYS)), values(round_up(call.values, LANES)), state(keys * values),
          key(keys * CHUNK), query(keys * CHUNK), value(CHUNK * values), output(CHUNK * values), scales{},
          against_value(call.against ? CHUNK * values : 1), history(CHUNK * KEYS * WIDE * LANES),
          product(CHUNK * LANES), against{} {}
};

// Positions begin ... begin + count - 1, in order or from the last to the first.
struct Piece {
    int64_t begin;
    int count;
    bool backwards;

    int64_t operator[](int i) const { return backwards ? begin + count - 1 - i : begin + i; }
};

inline const float* at(const SeqmixHeads& heads, int64_t row, int64_t t, int64_t head) {
    return heads.data + row * heads.batch + t * heads.time + head / heads.share * heads.head;
}

Scales find_scales(
    const SeqmixLinearAttention& call, const float* log_decay, int64_t row, int64_t head, const Piece& piece) {
    Scales s;
    float logs[CHUNK] = {};
    float log = 0.0f;
    for (int i = 0; i < piece.count; ++i) {
        log += log_decay[(row * call.time + piece[i]) * call.heads + head];
        s.renewal[i] = 1.0f;
        if (!(std::fabs(log) <= LARGEST_LOG)) {
            s.renewal[i] = std::exp(log);
            log = 0.0f;
        }
        logs[i] = log;
    }
    for (int i = 0; i < CHUNK; i += LANES) {
        store(s.outwards + i, exponential(load(logs + i)));
        store(s.inwards + i, exponential(-load(logs + i)));
    }
    s.end = s.outwards[piece.count - 1];
    return s;
}

// A row of keys or queries into the tiles' order.
inline void spread(const float* from, int64_t keys, int i, float* to) {
    int64_t k = 0;
    for (; k + KEYS <= keys; k += KEYS) std::memcpy(to + k * CHUNK + i * KEYS, from + k, KEYS * sizeof(float));
    for (int64_t left = 0; k + left < keys; ++left) to[k * CHUNK + i * KEYS + left] = from[k + left];
}

inline void gather_value(
    const SeqmixHeads& heads, int64_t row, int64_t t, int64_t head, int64_t values, float scale, float* to) {
    const float* from = at(heads, row, t, head);
    for (int64_t v = 0; v < values; ++v) to[v] = from[v] * scale;
}

void gather(const SeqmixLinearAttention& call, int64_t row, int64_t head, const Piece& piece, Scratch& s) {
    for (int i = 0; i < piece.count; ++i) {
        const int64_t t = piece[i];
        spread(at(call.key, row, t, head), call.keys, i, s.key.data());
        spread(at(call.query, row, t, head), call.keys, i, s.query.data());
        gather_value(call.value, row, t, head, call.values, s.scales.inwards[i], s.value.data() + i * s.values);
    }
}

template <int VECTORS>
using Tile = Vector[KEYS][VECTORS];

template <int VECTORS>
inline __attribute__((always_inline)) void load_tile(Tile<VECTORS>& S, const float* from, int64_t stride) {
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; ++j)
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) S[j][w] = load(from + j * stride + w * LANES);
}

template <int VECTORS>
inline __attribute__((always_inline)) void store_tile(float* to, int64_t stride, const Tile<VECTORS>& S, float scale) {
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; ++j)
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) store(to + j * stride + w * LANES, S[j][w] * scale);
}

template <int VECTORS>
inline __attribute__((always_inline)) void renew(Tile<VECTORS>& S, float factor) {
    if (factor == 1.0f) return;
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; ++j)
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) S[j][w] *= factor;
}

template <int VECTORS>
inline __attribute__((always_inline)) void add_outer(Tile<VECTORS>& S, const float* key, const float* value) {
    Vector added[VECTORS];
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) added[w] = load(value + w * LANES);
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; ++j)
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) S[j][w] += key[j] * added[w];
}

template <int VECTORS>
inline __attribute__((always_inline)) void read_out(const Tile<VECTORS>& S, const float* query, float* to) {
    Vector sum[VECTORS];
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) sum[w] = load(to + w * LANES);
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; ++j)
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) sum[w] += query[j] * S[j][w];
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) store(to + w * LANES, sum[w]);
}

// The other call's states before each position of the chunk, in order of time, scaled as its Scales say.
template <int VECTORS>
void recall(const SeqmixLinearAttention& call, Scratch& s, const float* before, int64_t k, int64_t v, int count) {
    constexpr int64_t SIZE = KEYS * VECTORS * LANES;
    Tile<VECTORS> S;
    for (int j = 0; j < KEYS; ++j)
        for (int w = 0; w < VECTORS; ++w) {
            const int64_t first = v + w * LANES, left = std::min<int64_t>(LANES, call.values - first);
            const float* from = before + (k + j) * call.values + first;
            S[j][w] = k + j >= call.keys ? Vector{} : left == LANES ? load(from) : load_some(from, int(left));
        }
    for (int i = 0; i < count; ++i) {
        store_tile<VECTORS>(s.history.data() + i * SIZE, VECTORS * LANES, S, 1.0f);
        renew<VECTORS>(S, s.against.renewal[i]);
        // Keys and queries were gathered in this call's order of time.
        const float* key = s.query.data() + k * CHUNK + (count - 1 - i) * KEYS;
        add_outer<VECTORS>(S, key, s.against_value.data() + i * s.values + v);
    }
}

template <int VECTORS>
inline __attribute__((always_inline)) void add_product(const Tile<VECTORS>& S, const float* other, float* to) {
    Vector sums[VECTORS] = {};
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; ++j)
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) sums[w] += S[j][w] * load(other + (j * VECTORS + w) * LANES);
    Vector total = load(to);
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) total += sums[w];
    store(to, total);
}

template <int VECTORS>
void run_tile(const SeqmixLinearAttention& call, Scratch& s, const float* against, int64_t k, int64_t v, int count) {
    constexpr int64_t SIZE = KEYS * VECTORS * LANES;
    if (against) recall<VECTORS>(call, s, against, k, v, count);
    float* state = s.state.data() + k * s.values + v;
    Tile<VECTORS> S;
    load_tile<VECTORS>(S, state, s.values);
    const float* key = s.key.data() + k * CHUNK;
    const float* query = s.query.data() + k * CHUNK;
    for (int i = 0; i < count; ++i) {
        renew<VECTORS>(S, s.scales.renewal[i]);
        add_outer<VECTORS>(S, key + i * KEYS, s.value.data() + i * s.values + v);
        read_out<VECTORS>(S, query + i * KEYS, s.output.data() + i * s.values + v);
        if (against)
            add_product<VECTORS>(
                S, s.history.data() + (count - 1 - i) * SIZE, s.product.data() + (count - 1 - i) * LANES);
    }
    store_tile<VECTORS>(state, s.values, S, s.scales.end);
}

void copy_state(const SeqmixLinearAttention& call, const Scratch& s, float* to) {
    for (int64_t k = 0; k < call.keys; ++k)
        std::copy_n(s.state.data() + k * s.values, call.values, to + k * call.values);
}

// The products of a chunk, brought to true size; each position's decay was not yet applied to the state before it.
void write_grad_log(const SeqmixLinearAttention& call, const Scratch& s, int64_t row, int64_t head, const Piece& piece) {
    for (int i = 0; i < piece.count; ++i) {
        const int64_t place = (row * call.time + piece.begin + i) * call.heads + head;
        const float before = i ? s.against.outwards[i - 1] : 1.0f;
        const float after = s.scales.outwards[piece.count - 1 - i];
        const float decay = std::exp(call.against_decay[place]);
        call.grad_log[place] = sum_of(load(s.product.data() + i * LANES)) * before * after * decay;
    }
}

void run_head(const SeqmixLinearAttention& call, int64_t row, int64_t head, int64_t part, bool first, Scratch& s) {
    const int64_t size = call.keys * call.values;
    const float* before = call.state ? call.state + (row * call.heads + head) * size : nullptr;
    std::fill_n(s.state.data(), s.keys * s.values, 0.0f);
    if (before)
        for (int64_t k = 0; k < call.keys; ++k)
            std::copy_n(before + k * call.values, call.values, s.state.data() + k * s.values);
    const int64_t outputs = call.heads / call.sum, chunks = (call.time + CHUNK - 1) / CHUNK;
    for (int64_t step = 0; step < chunks; ++step) {
        const int64_t chunk = call.backwards ? chunks - 1 - step : step, begin = chunk * CHUNK;
        const Piece piece{begin, int(std::min<int64_t>(CHUNK, call.time - begin)), bool(call.backwards)};
        const int64_t kept = ((row * call.heads + head) * chunks + chunk) * size;
        if (call.kept) copy_state(call, s, call.kept + kept);
        s.scales = find_scales(call, call.log_decay, row, head, piece);
        gather(call, row, head, piece, s);
        std::fill_n(s.output.data(), CHUNK * s.values, 0.0f);
        if (call.against) {
            s.against = find_scales(call, call.against_decay, row, head, {begin, piece.count, false});
            for (int i = 0; i < piece.count; ++i)
                gather_value(
                    call.against_value, row, begin + i, head, call.values, s.against.inwards[i],
                    s.against_value.data() + i * s.values);
            std::fill_n(s.product.data(), CHUNK * LANES, 0.0f);
        }
        const float* against = call.against ? call.against + kept : nullptr;
        int64_t v = 0;
        if (against)
            for (; v + 2 * LANES <= s.values; v += 2 * LANES)
                for (int64_t k = 0; k < s.keys; k += KEYS) run_tile<2>(call, s, against, k, v, piece.count);
        for (; v + WIDE * LANES <= s.values; v += WIDE * LANES)
            for (int64_t k = 0; k < s.keys; k += KEYS) run_tile<WIDE>(call, s, against, k, v, piece.count);
        for (; v < s.values; v += LANES)
            for (int64_t k = 0; k < s.keys; k += KEYS) run_tile<1>(call, s, against, k, v, piece.count);
        if (against) write_grad_log(call, s, row, head, piece);
        for (int i = 0; i < piece.count; ++i) {
            const int64_t place = (part * call.batch + row) * call.time + piece[i];
            float* to = call.output + (place * outputs + head / call.sum) * call.values;
            const float* from = s.output.data() + i * s.values;
            const float scale = s.scales.outwards[i];
            if (first)
                for (int64_t j = 0; j < call.values; ++j) to[j] = from[j] * scale;
            else
                for (int64_t j = 0; j < call.values; ++j) to[j] += from[j] * scale;
        }
    }
    copy_state(call, s, call.final_state + (row * call.heads + head) * size);
}

void end_row(
    const SeqmixStateSpaceEnds& call, const float* x, const float* grad_y, const float* grad_u, int64_t place, float D) {
    const float dt = call.dt[place];
    float* grad_x = call.grad_x + place * call.width;
    Vector through_u{}, through_y{};
    int64_t i = 0;
    for (; i + LANES <= call.width; i += LANES) {
        const Vector own = load(x + i), u = load(grad_u + i), y = load(grad_y + i);
        store(grad_x + i, dt * u + D * y);
        through_u += u * own;
        through_y += y * own;
    }
    if (const int left = int(call.width - i); left > 0) {
        const Vector own = load_some(x + i, left), u = load_some(grad_u + i, left), y = load_some(grad_y + i, left);
        store_some(grad_x + i, dt * u + D * y, left);
        through_u += u * own;
        through_y += y * own;
    }
    call.grad_dt[place] = sum_of(through_u);
    call.grad_D[place] = sum_of(through_y);
}

}  // namespace

EXPORT void KERNEL(seqmix_state_space_ends)(const SeqmixStateSpaceEnds* call) {
    const int64_t rows = call->batch * call->time;
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
    for (int64_t index = 0; index < rows; ++index)
        for (int64_t head = 0; head < call->heads; ++head) {
            const int64_t row = index / call->time, t = index % call->time, place = index * call->heads + head;
            end_row(
                *call, at(call->x, row, t, head), at(call->grad_y, row, t, head),
                call->grad_written + place * call->width, place, call->D[head]);
        }
}

EXPORT void KERNEL(seqmix_linear_attention)(const SeqmixLinearAttention* call) {
    const int64_t outputs = call->heads / call->sum, tasks = call->batch * outputs * call->parts;
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
    {
        Scratch scratch(*call);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t part = task % call->parts, output = task / call->parts % outputs;
            const int64_t begin = output * call->sum + call->sum * part / call->parts;
            const int64_t end = output * call->sum + call->sum * (part + 1) / call->parts;
            for (int64_t head = begin; head < end; ++head)
                run_head(*call, task / call->parts / outputs, head, part, head == begin, scratch);
        }
    }
}
