// exp and what is made of it, lane by lane.
#pragma once

#include "vectors.h"

namespace {

// exp(x) for x in [-87.3, 88], below and above that the value at the border; relative error below 2^-22.
// x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) by Cephes' polynomial of degree 7.
inline __attribute__((unused)) Vector exponential(Vector x) {
    const Vector low = broadcast(-87.3f), high = broadcast(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const Vector magic = broadcast(12582912.0f);
    const Vector shifted = x * broadcast(1.44269504f) + magic;
    const Vector n = shifted - magic;
    const Vector r = x - n * broadcast(0.693359375f) - n * broadcast(-2.12194440e-4f);
    Vector p = broadcast(1.9875691500e-4f);
    p = p * r + broadcast(1.3981999507e-3f);
    p = p * r + broadcast(8.3334519073e-3f);
    p = p * r + broadcast(4.1665795894e-2f);
    p = p * r + broadcast(1.6666665459e-1f);
    p = p * r + broadcast(5.0000001201e-1f);
    p = p * (r * r) + r + broadcast(1.0f);
    return (Vector)((Bits)p + ((Bits)shifted << 23));
}

inline __attribute__((unused)) Vector sigmoid(Vector x) {
    return broadcast(1.0f) / (broadcast(1.0f) + exponential(-x));
}

// log(1 + exp(x)) = max(x, 0) + log(1 + y) with y = exp(-|x|), and log(1 + y) = 2 atanh(y / (2 + y)): the series
// has no cancellation, so that small results keep their precision.
inline __attribute__((unused)) Vector softplus(Vector x) {
    const Vector zero{};
    const Vector above = x > zero ? x : zero;
    const Vector y = exponential(x > zero ? -x : x);
    const Vector s = y / (broadcast(2.0f) + y), square = s * s;
    Vector p = broadcast(1.0f / 13.0f);
    for (int n = 11; n >= 1; n -= 2) p = p * square + broadcast(1.0f / float(n));
    return above + broadcast(2.0f) * s * p;
}

// The sum of all lanes, in halves.
inline __attribute__((unused)) float sum_of(Vector x) {
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
    // The masked forms: GCC's plain ones read a register that it calls uninitialised.
    const __m512 all = (__m512)x;
    const __m256 eight = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(255, all, 0), _mm512_maskz_extractf32x8_ps(255, all, 1));
#else
    const __m256 eight = (__m256)x;
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

}  // namespace
