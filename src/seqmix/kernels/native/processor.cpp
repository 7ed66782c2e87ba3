// What the library says of itself: which of the instruction sets that it is compiled for the processor can run, and
// a fingerprint of the sources that it was made of.

#if defined(__x86_64__)
#define HAS(feature) __builtin_cpu_supports(feature)
#endif

extern "C" __attribute__((visibility("default"))) const char* seqmix_instruction_set() {
#if defined(__x86_64__)
    if (HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl") && HAS("fma")) return "avx512";
    if (HAS("avx2") && HAS("fma") && HAS("f16c")) return "avx2";
#endif
    return "baseline";
}

extern "C" __attribute__((visibility("default"))) const char* seqmix_sources() { return SEQMIX_SOURCES; }
