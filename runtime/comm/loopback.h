#pragma once
// Ranks as threads of one process: P = 1 is the single-rank case, and tests run 16 or 64 ranks
// cheaply.

#include <functional>
#include <memory>
#include <vector>

#include "runtime/comm/communicator.h"

namespace longhaul::runtime {

class FlightRecorder;

struct LoopbackOptions {
  double timeout_seconds = 60;
  /// A message can be received latency + bytes / bandwidth after it was posted; who waits sleeps.
  double latency_seconds = 0;
  double bandwidth_bytes_per_second = 0;  ///< 0: infinite
  /// Up to this much more, at random but the same for a seed, for each message: those of different
  /// senders overtake each other, those between two ranks of a communicator stay in order.
  double jitter_seconds = 0;
  std::uint64_t jitter_seed = 1;
  std::vector<FlightRecorder*> recorders = {};  ///< empty, or one a rank
};

/// Runs body(world communicator of that rank) on `ranks` threads, named "rank r" in errors, and
/// returns when all have ended. When one throws, the others' waits are released with an error.
/// Throws: the first error that was not such a release.
void run_loopback(int ranks, const LoopbackOptions& options,
                  const std::function<void(std::unique_ptr<Communicator>)>& body);

}  // namespace longhaul::runtime
