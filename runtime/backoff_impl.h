#pragma once
// How a thread polls for what it cannot block on. Private to runtime/.

#include <algorithm>
#include <chrono>
#include <thread>

#include "runtime/stream.h"

namespace longhaul::runtime::detail {

/// The pauses of one wait. Short waits are polled without sleeping; longer ones sleep for an eighth
/// of what they have lasted, so that what is awaited is seen late by an eighth of the wait, or
/// kLongest, at most, and a wait does not burn a core.
class Backoff {
 public:
  static constexpr std::chrono::microseconds kSpinning{50}, kLongest{200};

  /// The next sleep of a wait that has lasted so long; zero for none.
  static Clock::duration after(Clock::duration waited) {
    if (waited < kSpinning) return Clock::duration::zero();
    return std::min<Clock::duration>(waited / 8, kLongest);
  }
  void pause() {
    const Clock::duration sleep = after(Clock::now() - begin_);
    if (sleep == Clock::duration::zero()) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(sleep);
    }
  }

 private:
  const Clock::time_point begin_ = Clock::now();
};

}  // namespace longhaul::runtime::detail
