#pragma once
// One run a folder: what a job does before it writes anything.

#include <memory>
#include <vector>

#include "launch/train_config.h"
#include "runtime/comm/communicator.h"
#include "runtime/heartbeat.h"

namespace longhaul::launch {

/// Rank 0's hold on the folders that a run writes into: job.output_dir, and the folder of its
/// checkpoints, which runs of other output_dirs may name. They are free again when it ends.
class RunClaim {
 public:
  /// Waits where another run may be going on, and prints why. Throws as runtime::Heartbeat; gives
  /// up when the process is asked to stop.
  explicit RunClaim(const TrainConfig& config);
  /// Before something is written. Throws Error(launch) once another run has taken a folder over.
  void check();

 private:
  std::vector<std::unique_ptr<runtime::Heartbeat>> hearts_;
};

/// Collective: the claim on rank 0, null on the others, which wait for it. What is refused on rank
/// 0 is thrown by every rank.
std::unique_ptr<RunClaim> claim_for_job(const TrainConfig& config, runtime::Communicator& world);

}  // namespace longhaul::launch
