#pragma once
// Small training runs over loopback ranks, on sequences that a test makes up.

#include <functional>
#include <vector>

#include "launch/trainer.h"

namespace longhaul::test {

/// A model of a few thousand weights; 4 sequences a step.
launch::TrainConfig small_training(std::int64_t seq_len);

/// Random tokens in random documents (some of one token, some as long as the sequence), labels
/// shifted inside them; a pure function of (vocabulary, seq_len, cursor).
runtime::Sequence random_sequence(std::int64_t vocabulary, std::int64_t seq_len,
                                  std::int64_t cursor);

struct RunSteps {
  std::int64_t steps = 20;
  std::string load_from = {};  ///< checkpoint folder to go on from, its newest
  std::string save_to = {};    ///< checkpoint folder to save to after the last step
  /// Called on every rank after the last step.
  std::function<void(launch::Trainer&, runtime::Communicator&)> after = {};
};

/// Trains data x context loopback ranks and returns rank 0's results, after checking that every
/// rank has the same.
std::vector<launch::StepResult> run_training(const launch::TrainConfig& config,
                                             std::int64_t vocabulary,
                                             const launch::SequenceSource& sequences,
                                             const RunSteps& options = {});

}  // namespace longhaul::test
