// Vectors of floats as wide as the instruction set that a file is compiled for, through GCC's vector extensions.
//
// Every operation is compiled once for each instruction set; KERNEL(name) is its name in that build, for example
// seqmix_depthwise_conv_avx2. seqmix/kernels/library.py picks the build that the processor can run.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef SEQMIX_ISA
#error "SEQMIX_ISA names the instruction set that this file is compiled for"
#endif

#define SEQMIX_JOIN_(name, isa) name##_##isa
#define SEQMIX_JOIN(name, isa) SEQMIX_JOIN_(name, isa)
#define KERNEL(name) SEQMIX_JOIN(name, SEQMIX_ISA)
#define EXPORT extern "C" __attribute__((visibility("default")))

// Everything else has internal linkage: the same template compiled for two instruction sets must not be merged.
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr int REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4;
constexpr int REGISTERS = 32;
#else
constexpr int LANES = 4;
constexpr int REGISTERS = 16;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float UnalignedVector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfBits __attribute__((vector_size(LANES * 2)));

// bfloat16 as it lies in memory: the upper half of a float.
struct bfloat16 {
    uint16_t bits;
};

inline Vector broadcast(float value) { return Vector{} + value; }

inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }

inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }

inline Vector load(const bfloat16* from) {
    HalfBits half;
    std::memcpy(&half, from, sizeof half);
    const Bits wide = __builtin_convertvector(half, Bits) << 16;
    return (Vector)wide;
}

// Rounds to the nearest, ties to even, as torch does; what is not a number stays so.
inline void store(bfloat16* to, Vector value) {
    const Bits bits = (Bits)value;
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits is_nan = (Bits)(value != value);
    const Bits chosen = (is_nan & 0x7fc0u) | (~is_nan & rounded);
    const HalfBits half = __builtin_convertvector(chosen, HalfBits);
    std::memcpy(to, &half, sizeof half);
}

inline float to_float(float value) { return value; }

inline float to_float(bfloat16 value) {
    const uint32_t wide = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &wide, sizeof result);
    return result;
}

// The first `count` lanes, zero in the others; for the channels that are left of a width below LANES.
template <typename Number>
inline Vector load_some(const Number* from, int count) {
    Number some[LANES] = {};
    for (int lane = 0; lane < count; ++lane) some[lane] = from[lane];
    return load(some);
}

template <typename Number>
inline void store_some(Number* to, Vector value, int count) {
    Number some[LANES];
    store(some, value);
    for (int lane = 0; lane < count; ++lane) to[lane] = some[lane];
}

#if defined(__AVX512F__)
inline Vector load_some(const float* from, int count) {
    return (Vector)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from);
}

inline void store_some(float* to, Vector value, int count) {
    _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)value);
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vector load_some(const float* from, int count) {
    return (Vector)_mm256_maskload_ps(from, first_lanes(count));
}

inline void store_some(float* to, Vector value, int count) {
    _mm256_maskstore_ps(to, first_lanes(count), (__m256)value);
}
#endif

}  // namespace
