// How the threads of a step share its work and wait for each other.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace {

constexpr int SPINS_BEFORE_YIELD = 2000;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// All threads of a step meet here. Spinning, because the next operation is a microsecond away.
struct Barrier {
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<int64_t> generation{0};

    void wait(int64_t threads) {
        if (threads == 1) return;
        const int64_t before = generation.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            generation.store(before + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; generation.load(std::memory_order_acquire) == before; ++spins) {
            pause();
            // Another program may hold the core that the last thread needs.
            if (spins > SPINS_BEFORE_YIELD) std::this_thread::yield();
        }
    }
};

struct Share {
    int64_t begin, end;
};

inline Share share_of(int64_t count, int64_t thread, int64_t threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
}

}  // namespace
