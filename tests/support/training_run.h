#pragma once
// Small training runs over loopback ranks, on sequences that a test makes up.

#include <functional>
#include <vector>

#include "launch/trainer.h"
#include "runtime/comm/loopback.h"
#include "tests/support/raw_sequences.h"

namespace longhaul::test {

/// A model of a few thousand weights; 4 sequences a step.
launch::TrainConfig small_training(std::int64_t seq_len);

struct RunSteps {
  std::int64_t steps = 20;
  std::string load_from = {};  ///< checkpoint folder to go on from, its newest
  std::string save_to = {};    ///< checkpoint folder to save to after the last step
  /// Called on every rank after the last step.
  std::function<void(launch::Trainer&, runtime::Communicator&)> after = {};
  runtime::LoopbackOptions loopback = {};
};

/// Trains data x context loopback ranks, on the CPU or all of them on CUDA device 0, and returns
/// rank 0's results, after checking that every rank has the same.
std::vector<launch::StepResult> run_training(const launch::TrainConfig& config,
                                             std::int64_t vocabulary,
                                             const RawSequences::Generator& sequences,
                                             const RunSteps& options = {});
std::vector<launch::StepResult> run_training(
    const launch::TrainConfig& config, std::int64_t vocabulary,
    const std::shared_ptr<const runtime::SequenceSource>& sequences, const RunSteps& options = {});

}  // namespace longhaul::test
