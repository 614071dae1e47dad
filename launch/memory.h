#pragma once
// What a rank of a run will hold in memory, before it asks for any of it.

#include <cstdint>
#include <string>

#include "launch/place.h"
#include "launch/train_config.h"
#include "models/model.h"
#include "runtime/comm/communicator.h"
#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// Of one rank, in bytes, at the peak of a step. Tensors and messages; not the program, nor the
/// pages of the corpus.
struct MemoryEstimate {
  std::int64_t parameters = 0;  ///< with their bfloat16 copy, where there is one
  std::int64_t gradients = 0;
  std::int64_t optimizer = 0;    ///< this rank's part where it is sharded
  std::int64_t activations = 0;  ///< kept for backward, of all passes that go together
  std::int64_t attention = 0;    ///< of calls: blocks that travel and what kernels overwrite
  std::int64_t passing = 0;      ///< what else a step holds for a while: logits, gradients of rows
  std::int64_t messages = 0;     ///< staged, of attention and of gradients

  std::int64_t states() const { return parameters + gradients + optimizer; }
  std::int64_t total() const { return states() + activations + attention + passing + messages; }
};

/// What is estimated: a configuration with a known grid, over `sequences`, of which the most
/// demanding among the first stand for all (demanding_batches.h).
struct MemoryQuestion {
  const TrainConfig& config;
  std::int64_t vocabulary = 0;
  const runtime::SequenceSource& sequences;
  int threads = 1;              ///< of a rank
  runtime::Device device = {};  ///< that plans attention's calls, where they are to run on one
};
/// Parameters, gradients and optimizer alone: cheap.
MemoryEstimate estimate_states(const MemoryQuestion& question, int rank);
/// All of it: prepares the rank's attention calls once for each of those.
MemoryEstimate estimate_memory(const MemoryQuestion& question, int rank);
/// "1.3 GiB a rank: parameters 0.2 GiB, ..."
std::string estimate_text(const MemoryEstimate& estimate);

/// Of a run that starts, on the hosts or GPUs that its ranks are on: this rank's estimate in words,
/// and what another needs where that is more, with a warning and what each remedy would save where
/// a host or GPU has less. Collective; throws on every rank alike: Error(memory) when parameters
/// and states alone exceed what the ranks of a host have together.
std::string check_memory(const MemoryQuestion& question, runtime::Communicator& world,
                         const Place& place);

/// The same before a run, as far as it can be known: the rank that needs most, beside this host's
/// memory. Throws Error(memory) when not even one rank's parameters and states fit.
std::string judge_memory(const MemoryQuestion& question);

}  // namespace longhaul::launch
