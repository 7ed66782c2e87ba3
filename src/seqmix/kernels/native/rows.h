// Row by row work on (rows, dim) tensors: a row as floats in a buffer, and rows shared out to threads.
#pragma once

#include <algorithm>
#include <vector>

#include "vector_math.h"

namespace {

inline __attribute__((unused)) int64_t padded(int64_t dim) { return (dim + LANES - 1) / LANES * LANES; }

// Calls work(vector from, first) for the vectors of a row; the last one has zeros beyond the row.
template <typename Number, typename Work>
inline __attribute__((always_inline)) void read_row(const Number* from, int64_t dim, const Work& work) {
    int64_t c = 0;
    for (; c + LANES <= dim; c += LANES) work(load(from + c), c);
    if (c < dim) work(load_some(from + c, int(dim - c)), c);
}

// Writes value(first) for the vectors of a row.
template <typename Number, typename Value>
inline __attribute__((always_inline)) void write_row(Number* to, int64_t dim, const Value& value) {
    int64_t c = 0;
    for (; c + LANES <= dim; c += LANES) store(to + c, value(c));
    if (c < dim) store_some(to + c, value(c), int(dim - c));
}

// Calls work(thread, first row, last row + 1); every thread has a neighbouring stretch of rows, at least `least`.
template <typename Work>
void share_rows(int64_t rows, int64_t threads, int64_t least, const Work& work) {
    const int64_t count = std::clamp<int64_t>(rows / std::max<int64_t>(1, least), 1, std::max<int64_t>(1, threads));
    if (count == 1) {
        work(0, 0, rows);
        return;
    }
#pragma omp parallel for num_threads(int(count)) schedule(static, 1)
    for (int64_t thread = 0; thread < count; ++thread)
        work(thread, rows * thread / count, rows * (thread + 1) / count);
}

// Floats that a thread should have at least, so that starting it pays.
constexpr int64_t FLOATS_A_THREAD = 8192;

}  // namespace
