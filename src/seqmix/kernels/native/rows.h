// Row by row work on (rows, dim) tensors: a row as floats in a buffer, and rows shared out to threads.
#pragma once

#include <algorithm>
#include <vector>

#include "vector_math.h"

namespace {

inline __attribute__((unused)) int64_t padded(int64_t dim) { return (dim + LANES - 1) / LANES * LANES; }

// The sum of all lanes, in halves.
template <int COUNT>
inline __attribute__((always_inline)) float sum_of_lanes(const float* lanes) {
    if constexpr (COUNT == 1)
        return lanes[0];
    else
        return sum_of_lanes<COUNT / 2>(lanes) + sum_of_lanes<COUNT / 2>(lanes + COUNT / 2);
}

inline __attribute__((always_inline)) float sum_in_halves(Vector value) {
    float lanes[LANES];
    store(lanes, value);
    return sum_of_lanes<LANES>(lanes);
}

// The sum of value(c) over c = 0, LANES, ... < size, in four chains that do not wait for each other.
template <typename Value>
inline __attribute__((always_inline)) float sum_row(int64_t size, const Value& value) {
    Vector sums[4] = {};
    int64_t c = 0;
    for (; c + 4 * LANES <= size; c += 4 * LANES)
        for (int i = 0; i < 4; ++i) sums[i] += value(c + i * LANES);
    for (; c < size; c += LANES) sums[0] += value(c);
    return sum_in_halves((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Calls work(lanes, c) for the vectors of a row. The last one may overlap the one before it, so that it ends where
// the row does: work must write what does not depend on what it wrote. Only a row below LANES is read in part.
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

template <typename Work>
inline __attribute__((always_inline)) void for_each_vector(int64_t first, int64_t last, const Work& work) {
    int64_t c = first;
    for (; c + LANES <= last; c += LANES) work(Whole{}, c);
    if (c < last && last - first >= LANES)
        work(Whole{}, last - LANES);
    else if (c < last)
        work(Some{int(last - c)}, c);
}

// A row into a buffer whose padding is zero and stays so.
template <typename Number>
inline __attribute__((always_inline)) void read_row(const Number* from, int64_t dim, float* row) {
    // A row below LANES fills a whole vector, with zeros beyond it.
    for_each_vector(0, dim, [&](auto lanes, int64_t c) { store(row + c, lanes.read(from + c)); });
}

template <typename Number>
inline __attribute__((always_inline)) void write_row(Number* to, int64_t dim, const float* row) {
    for_each_vector(0, dim, [&](auto lanes, int64_t c) { lanes.write(to + c, load(row + c)); });
}

// Rows of floats one after another, each padded with zeros to whole vectors.
class PaddedRows {
  public:
    PaddedRows(int64_t rows, int64_t dim) : width_(padded(dim)), floats_(rows * width_) {}

    PaddedRows(const float* from, int64_t rows, int64_t dim) : PaddedRows(rows, dim) {
        for (int64_t row = 0; row < rows; ++row) std::copy_n(from + row * dim, dim, (*this)[row]);
    }

    float* operator[](int64_t row) { return floats_.data() + row * width_; }

  private:
    int64_t width_;
    std::vector<float> floats_;
};

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
