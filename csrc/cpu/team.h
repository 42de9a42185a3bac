// A team of threads that passes from wave to wave of work without leaving its parallel region.

#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace hrnet_fast::cpu {

inline void relax() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_ia32_pause();
#endif
}

// Threads wait here for each other. Cores may be shared: after spinning for about ten microseconds a thread lets others
// run.
class Barrier {
 public:
  int members = 1;

  void wait() {
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < 400) {
        relax();
      } else {
#if defined(__linux__)
        sched_yield();
#endif
      }
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// A counter in a cache line of its own: threads take numbers from it.
struct alignas(64) Counter {
  std::atomic<int64_t> next{0};
};

// Runs `wave(k, item)` for every item of every wave, items[k] of them: a wave's in any order on any thread, waves one
// after the other. `rest` is called by every thread when it is done. Neither may throw.
template <typename Wave, typename Rest>
void run_waves(const std::vector<int64_t>& items, int threads, const Wave& wave, const Rest& rest) {
  const int64_t waves = static_cast<int64_t>(items.size());
#if defined(_OPENMP)
  if (threads > 1) {
    std::vector<Counter> counters(waves);
    // The team may be smaller than asked for: whoever comes makes the barrier together.
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
      barrier.members = omp_get_num_threads();
      for (int64_t k = 0; k < waves; ++k) {
        for (int64_t i; (i = counters[k].next.fetch_add(1, std::memory_order_relaxed)) < items[k];) wave(k, i);
        barrier.wait();
      }
      rest();
    }
    return;
  }
#endif
  for (int64_t k = 0; k < waves; ++k)
    for (int64_t i = 0; i < items[k]; ++i) wave(k, i);
  rest();
}

}  // namespace hrnet_fast::cpu
