// The loss of rows of logits and its gradient in their place, for one instruction set. See cross_entropy.h.

#include "cross_entropy.h"

#include <cmath>
#include <limits>

#include "rows.h"

namespace {

// The vectors of a row of logits; lanes beyond it are so low that their exp adds nothing.
template <typename Number, typename Work>
inline __attribute__((always_inline)) void read_logits(const Number* from, int64_t vocabulary, const Work& work) {
    int64_t c = 0;
    for (; c + LANES <= vocabulary; c += LANES) work(load(from + c));
    if (c < vocabulary) {
        Vector last = load_some(from + c, int(vocabulary - c));
        for (int64_t lane = vocabulary - c; lane < LANES; ++lane) last[lane] = -std::numeric_limits<float>::infinity();
        work(last);
    }
}

template <typename Number>
void row(const SeqmixCrossEntropy& call, int64_t row) {
    Number* logits = static_cast<Number*>(call.logits) + row * call.vocabulary;
    const int64_t target = call.targets[row];
    const bool is_ignored = target == call.ignored;
    if (is_ignored && call.factor) std::fill_n(reinterpret_cast<char*>(logits), sizeof(Number) * call.vocabulary, 0);
    if (is_ignored) {
        call.losses[row] = 0;
        return;
    }
    Vector highest = broadcast(-std::numeric_limits<float>::infinity());
    read_logits(logits, call.vocabulary, [&](Vector v) { highest = v > highest ? v : highest; });
    float most = highest[0];
    for (int lane = 1; lane < LANES; ++lane) most = std::max(most, highest[lane]);
    // Sums of sums: a vocabulary is long, and float32 adds up at most 2^-24 of error for each of a few additions.
    double sum = 0;
    Vector part = {};
    int count = 0;
    read_logits(logits, call.vocabulary, [&](Vector v) {
        const Vector below = v - broadcast(most);
        // What is not a number must not come out as one.
        part += below == below ? exponential(below) : below;
        if (++count == 64) {
            sum += sum_of(part);
            part = Vector{};
            count = 0;
        }
    });
    sum += sum_of(part);
    const float of_target = to_float(logits[target]);
    const double log_sum = double(most) + std::log(sum);
    call.losses[row] = float(log_sum - double(of_target));
    if (!call.factor) return;
    const float total = float(log_sum), factor = call.factor[row];
    int64_t c = 0;
    const auto gradient = [&](Vector v) { return exponential(v - broadcast(total)) * broadcast(factor); };
    for (; c + LANES <= call.vocabulary; c += LANES) store(logits + c, gradient(load(logits + c)));
    const int left = int(call.vocabulary - c);
    if (left) store_some(logits + c, gradient(load_some(logits + c, left)), left);
    float one[LANES] = {(std::exp(of_target - total) - 1.0f) * factor};
    store_some(logits + target, load(one), 1);
}

}  // namespace

EXPORT void KERNEL(seqmix_cross_entropy)(SeqmixCrossEntropy* call) {
    call->bad_row = -1;
    for (int64_t r = 0; r < call->rows; ++r) {
        const int64_t target = call->targets[r];
        if (target != call->ignored && (target < 0 || target >= call->vocabulary)) {
            call->bad_row = r;
            return;
        }
    }
    share_rows(call->rows, call->threads, FLOATS_A_THREAD / std::max<int64_t>(1, call->vocabulary) + 1,
               [&](int64_t, int64_t first, int64_t last) {
                   for (int64_t r = first; r < last; ++r) {
                       if (call->storage == 0)
                           row<float>(*call, r);
                       else
                           row<bfloat16>(*call, r);
                   }
               });
}
