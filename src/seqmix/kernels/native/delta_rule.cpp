// The delta rule on a CPU, for one instruction set. See delta_rule.h.
//
// The rows of a state do not see each other: a few of them stay in registers while time passes through a chunk. The
// backward makes a chunk's states once more from the one before it, and goes back through them with the gradient of
// the state in memory, a row at a time.

#include "delta_rule.h"

#include <algorithm>
#include <vector>

#include "rows.h"

namespace {

constexpr int CHUNK = SEQMIX_DELTA_CHUNK;
// The most vectors a row of the state may take.
constexpr int WIDEST = 512 / LANES;

struct Place {
    int64_t row, head;
};

// The vectors of a chunk, padded with zeros to whole ones: (CHUNK, width) each.
struct Inputs {
    int64_t width;
    std::vector<float> r, decay, k, kappa, rate, replaced;
    bool begins[CHUNK];

    explicit Inputs(int64_t width)
        : width(width), r(CHUNK * width), decay(r), k(r), kappa(r), rate(r), replaced(r), begins{} {}

    void read(const SeqmixDeltaRule& call, Place at, int64_t first, int count) {
        for (int i = 0; i < count; ++i) {
            const int64_t t = first + i, place = ((at.row * call.time + t) * call.heads + at.head) * call.keys;
            const int64_t here = i * width;
            read_row(call.r + place, call.keys, r.data() + here);
            read_row(call.log_decay + place, call.keys, decay.data() + here);
            read_row(call.k + place, call.keys, k.data() + here);
            read_row(call.kappa + place, call.keys, kappa.data() + here);
            read_row(call.rate + place, call.keys, rate.data() + here);
            for (int64_t c = here; c < here + width; c += LANES) {
                store(decay.data() + c, exponential(load(decay.data() + c)));
                store(replaced.data() + c, load(rate.data() + c) * load(kappa.data() + c));
            }
            const int64_t* runs = call.runs ? call.runs + at.row * call.time : nullptr;
            begins[i] = runs && (t ? runs[t] != runs[t - 1] : runs[0] != 0);
        }
    }
};

inline int64_t value_place(const SeqmixDeltaRule& call, Place at, int64_t t) {
    return ((at.row * call.time + t) * call.heads + at.head) * call.values;
}

// ROWS rows of the state through a chunk. What is removed at each position and the states after it are written where
// the backward asks for them: removed (CHUNK, values), history (CHUNK, values, width).
template <int VECTORS, int ROWS>
void advance(
    const SeqmixDeltaRule& call, const Inputs& in, Place at, int64_t first, int count, int64_t v, float* state, float* y,
    float* removed, float* history) {
    const int64_t width = in.width;
    Vector S[ROWS][VECTORS];
    for (int i = 0; i < ROWS; ++i)
        for (int c = 0; c < VECTORS; ++c) S[i][c] = load(state + (v + i) * width + c * LANES);
    for (int t = 0; t < count; ++t) {
        const float* value = call.v + value_place(call, at, first + t) + v;
        const int64_t here = t * width;
        if (in.begins[t])
            for (int i = 0; i < ROWS; ++i)
                for (int c = 0; c < VECTORS; ++c) S[i][c] = Vector{};
        for (int i = 0; i < ROWS; ++i) {
            Vector sum{};
            for (int c = 0; c < VECTORS; ++c) sum += S[i][c] * load(in.kappa.data() + here + c * LANES);
            const float gone = sum_of(sum);
            const Vector taken = broadcast(gone), written = broadcast(value[i]);
            Vector answer{};
            for (int c = 0; c < VECTORS; ++c) {
                const int64_t place = here + c * LANES;
                S[i][c] = S[i][c] * load(in.decay.data() + place) + written * load(in.k.data() + place) -
                          taken * load(in.replaced.data() + place);
                answer += S[i][c] * load(in.r.data() + place);
            }
            if (y) y[value_place(call, at, first + t) + v + i] = sum_of(answer);
            if (history) {
                removed[t * call.values + v + i] = gone;
                for (int c = 0; c < VECTORS; ++c)
                    store(history + (t * call.values + v + i) * width + c * LANES, S[i][c]);
            }
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int c = 0; c < VECTORS; ++c) store(state + (v + i) * width + c * LANES, S[i][c]);
}

template <int VECTORS>
void advance_all(
    const SeqmixDeltaRule& call, const Inputs& in, Place at, int64_t first, int count, float* state, float* y,
    float* removed, float* history) {
    constexpr int ROWS = VECTORS * 4 <= REGISTERS / 2 ? 4 : VECTORS * 2 <= REGISTERS / 2 ? 2 : 1;
    int64_t v = 0;
    for (; v + ROWS <= call.values; v += ROWS)
        advance<VECTORS, ROWS>(call, in, at, first, count, v, state, y, removed, history);
    for (; v < call.values; ++v) advance<VECTORS, 1>(call, in, at, first, count, v, state, y, removed, history);
}

inline void read_state(const float* from, int64_t values, int64_t keys, int64_t width, float* to) {
    for (int64_t v = 0; v < values; ++v) read_row(from + v * keys, keys, to + v * width);
}

inline void write_state(float* to, int64_t values, int64_t keys, int64_t width, const float* from) {
    for (int64_t v = 0; v < values; ++v) write_row(to + v * keys, keys, from + v * width);
}

inline int64_t chunks_of(const SeqmixDeltaRule& call) { return (call.time + CHUNK - 1) / CHUNK; }

template <int VECTORS>
void forward(const SeqmixDeltaRule& call, Place at) {
    constexpr int64_t width = VECTORS * LANES;
    const int64_t size = call.values * call.keys, head = at.row * call.heads + at.head;
    Inputs in(width);
    std::vector<float> state(call.values * width);
    read_state(call.state + head * size, call.values, call.keys, width, state.data());
    for (int64_t first = 0; first < call.time; first += CHUNK) {
        const int count = int(std::min<int64_t>(CHUNK, call.time - first));
        if (call.kept) {
            float* to = call.kept + (head * chunks_of(call) + first / CHUNK) * size;
            write_state(to, call.values, call.keys, width, state.data());
        }
        in.read(call, at, first, count);
        advance_all<VECTORS>(call, in, at, first, count, state.data(), call.y, nullptr, nullptr);
    }
    write_state(call.final_state + head * size, call.values, call.keys, width, state.data());
}

template <int VECTORS>
struct Gradients {
    Vector r[VECTORS], decay[VECTORS], k[VECTORS], kappa[VECTORS], replaced[VECTORS];
};

// One position back: G comes in as the gradient of S[t] through what follows and leaves as that of S[t-1].
template <int VECTORS>
void step_back(
    const SeqmixDeltaRule& call, const Inputs& in, Place at, int64_t t, int i, const float* before, const float* after,
    const float* removed, float* G) {
    constexpr int64_t width = VECTORS * LANES;
    const int64_t here = i * width, values = value_place(call, at, t);
    Gradients<VECTORS> sums = {};
    for (int64_t v = 0; v < call.values; ++v) {
        float* row = G + v * width;
        const Vector grad_y = broadcast(call.grad_y[values + v]);
        const Vector value = broadcast(call.v[values + v]), gone = broadcast(removed[v]);
        Vector g[VECTORS], of_value{}, of_removed{};
        for (int c = 0; c < VECTORS; ++c) {
            const int64_t place = here + c * LANES;
            g[c] = load(row + c * LANES) + grad_y * load(in.r.data() + place);
            sums.r[c] += grad_y * load(after + v * width + c * LANES);
            of_value += g[c] * load(in.k.data() + place);
            of_removed += g[c] * load(in.replaced.data() + place);
            sums.k[c] += g[c] * value;
            sums.replaced[c] -= g[c] * gone;
        }
        call.grad_v[values + v] = sum_of(of_value);
        const Vector taken = broadcast(sum_of(of_removed));
        if (!before) continue;
        for (int c = 0; c < VECTORS; ++c) {
            const int64_t place = here + c * LANES;
            const Vector old = load(before + v * width + c * LANES);
            sums.decay[c] += g[c] * old;
            sums.kappa[c] -= taken * old;
            store(row + c * LANES, g[c] * load(in.decay.data() + place) - taken * load(in.kappa.data() + place));
        }
    }
    // A document that begins here has no state before it.
    if (!before) std::fill_n(G, call.values * width, 0.0f);
    float whole[5][width];
    for (int c = 0; c < VECTORS; ++c) {
        const int64_t place = here + c * LANES;
        const Vector rate = load(in.rate.data() + place), kappa = load(in.kappa.data() + place);
        store(whole[0] + c * LANES, sums.r[c]);
        store(whole[1] + c * LANES, sums.decay[c] * load(in.decay.data() + place));
        store(whole[2] + c * LANES, sums.k[c]);
        store(whole[3] + c * LANES, sums.kappa[c] + sums.replaced[c] * rate);
        store(whole[4] + c * LANES, sums.replaced[c] * kappa);
    }
    const int64_t keys = ((at.row * call.time + t) * call.heads + at.head) * call.keys;
    float* to[5] = {call.grad_r, call.grad_log_decay, call.grad_k, call.grad_kappa, call.grad_rate};
    for (int part = 0; part < 5; ++part) write_row(to[part] + keys, call.keys, whole[part]);
}

template <int VECTORS>
void backward(const SeqmixDeltaRule& call, Place at) {
    constexpr int64_t width = VECTORS * LANES;
    const int64_t size = call.values * call.keys, head = at.row * call.heads + at.head, one = call.values * width;
    Inputs in(width);
    std::vector<float> G(one), start(one), state(one), history(CHUNK * one), removed(CHUNK * call.values);
    read_state(call.grad_final + head * size, call.values, call.keys, width, G.data());
    for (int64_t chunk = chunks_of(call) - 1; chunk >= 0; --chunk) {
        const int64_t first = chunk * CHUNK;
        const int count = int(std::min<int64_t>(CHUNK, call.time - first));
        const float* kept = call.kept + (head * chunks_of(call) + chunk) * size;
        read_state(kept, call.values, call.keys, width, start.data());
        state = start;
        in.read(call, at, first, count);
        advance_all<VECTORS>(call, in, at, first, count, state.data(), nullptr, removed.data(), history.data());
        for (int i = count - 1; i >= 0; --i) {
            const float* before = in.begins[i] ? nullptr : i ? history.data() + (i - 1) * one : start.data();
            step_back<VECTORS>(
                call, in, at, first + i, i, before, history.data() + i * one, removed.data() + i * call.values, G.data());
        }
    }
    write_state(call.grad_state + head * size, call.values, call.keys, width, G.data());
}

// Calls work with the number of vectors of a row, rounded up to a power of two.
template <int VECTORS = 1, typename Work>
void with_vectors(int64_t keys, const Work& work) {
    if constexpr (VECTORS <= WIDEST) {
        if (keys <= VECTORS * LANES)
            work(std::integral_constant<int, VECTORS>{});
        else
            with_vectors<2 * VECTORS>(keys, work);
    }
}

template <typename Work>
void for_each_head(const SeqmixDeltaRule& call, const Work& work) {
    const int64_t tasks = call.batch * call.heads;
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (call.threads > 1)
    for (int64_t task = 0; task < tasks; ++task) work(Place{task / call.heads, task % call.heads});
}

}  // namespace

EXPORT void KERNEL(seqmix_delta_rule)(const SeqmixDeltaRule* call) {
    with_vectors(call->keys, [&](auto vectors) {
        for_each_head(*call, [&](Place at) { forward<decltype(vectors)::value>(*call, at); });
    });
}

EXPORT void KERNEL(seqmix_delta_rule_backward)(const SeqmixDeltaRule* call) {
    with_vectors(call->keys, [&](auto vectors) {
        for_each_head(*call, [&](Place at) { backward<decltype(vectors)::value>(*call, at); });
    });
}
