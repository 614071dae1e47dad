#pragma once
// Threads that add into the same rows, each when it is its turn: sums have one order, whatever the
// threads.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

namespace longhaul::attention {

/// Hands the row blocks' dQ from key block to key block.
class Turns {
 public:
  using Turn = std::int64_t;
  /// `turns` is memory for `count` of them.
  Turns(Turn* turns, std::int64_t count) : turns_(turns) { std::fill_n(turns, count, 0); }
  void wait(std::int64_t which, std::int64_t turn) {
    const std::atomic_ref now(turns_[which]);
    for (int spins = 0; now.load(std::memory_order_acquire) != turn; ++spins) {
      if (spins < 64) {
        _mm_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
  void pass(std::int64_t which) {
    std::atomic_ref(turns_[which]).fetch_add(1, std::memory_order_release);
  }

 private:
  Turn* turns_;
};

}  // namespace longhaul::attention
