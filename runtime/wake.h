#pragma once
// What it costs that threads sleep while they wait: how long they take to begin.

#include <vector>

namespace longhaul::runtime {

/// Seconds of each of `count` repetitions. Before each the thread that hands out work is busy alone
/// for `idle_seconds`, so that the others have found nothing to do for as long.
struct WakeTimes {
  std::vector<double> region;  ///< of an empty parallel region of OpenMP, begin to end
  std::vector<double> task;    ///< until a stream's thread begins a task that the host enqueued
};
WakeTimes measure_wake(int threads, double idle_seconds, int count);

}  // namespace longhaul::runtime
