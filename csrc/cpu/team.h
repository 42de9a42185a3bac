// A team of threads that runs several waves of work in one parallel region.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace hrnet_fast::cpu {

inline void relax() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_ia32_pause();
#endif
}

// Shared state of a wave in its own cache line: the next item, and the number of finished items.
struct alignas(64) Counter {
  std::atomic<int64_t> next{0}, done{0};
};

// Waits until all items of a wave are done. It waits for items, not threads: a descheduled thread without an item
// delays no other. After spinning for about ten microseconds a thread yields, because cores may be shared.
inline void wait_for(const Counter& counter, int64_t items) {
  int spins = 0;
  while (counter.done.load(std::memory_order_acquire) != items) {
    if (spins < 400) {
      relax();
      ++spins;
    } else {
      std::this_thread::yield();
    }
  }
}

// Runs `wave(k, item)` for every item of every wave, items[k] of them: those of one wave in any order on any thread,
// and waves in order. Every thread calls `rest` at the end. Neither may throw.
template <typename Wave, typename Rest>
void run_waves(const std::vector<int64_t>& items, int threads, const Wave& wave, const Rest& rest) {
  const int64_t waves = static_cast<int64_t>(items.size());
#if defined(_OPENMP)
  if (threads > 1) {
    std::vector<Counter> counters(waves);
#pragma omp parallel num_threads(threads)
    {
      for (int64_t k = 0; k < waves; ++k) {
        for (int64_t i; (i = counters[k].next.fetch_add(1, std::memory_order_relaxed)) < items[k];) {
          wave(k, i);
          counters[k].done.fetch_add(1, std::memory_order_release);
        }
        wait_for(counters[k], items[k]);
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
