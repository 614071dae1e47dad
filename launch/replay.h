#pragma once
// What every replay of an attention call has in common, whatever attends: its ranks, where they
// compute, the proof of its schedules, its clock and what it sent.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/attention.h"
#include "launch/case_file.h"
#include "parallel/attention.h"
#include "parallel/schemes/scheme.h"
#include "runtime/comm/communicator.h"
#include "runtime/stream.h"

namespace longhaul::launch {

/// A rank of a replay.
struct ReplayRank {
  runtime::Communicator& world;
  std::unique_ptr<runtime::Communicator> context;
  const runtime::Stream& compute;
  std::vector<int> nodes;  ///< of all ranks
};

/// A call that is decided and verified; the same on all ranks.
class Replay {
 public:
  virtual ~Replay() = default;
  /// Runs one rank, on a thread or process of its own; rank 0 writes and prints what all gave.
  /// Collective.
  virtual void run(ReplayRank rank, const runtime::OutputFile& output) const = 0;
};
using MakeReplay = std::function<std::unique_ptr<const Replay>(int ranks)>;

/// Makes the replay and runs it on the ranks that the options ask for, or the launcher started.
void run_ranks(const AttentionOptions& options, const MakeReplay& make,
               const runtime::OutputFile& output);

/// Of what a replay waits for that has no limit of its own.
runtime::Deadline replay_deadline();
/// float32 or bfloat16. Throws Error(config) naming the option.
runtime::DType dtype_of_option(const char* option, const std::string& text);
/// Verifies the schedules of both directions; Error(internal) where one does not hold.
void verify_schedules(parallel::SchemeInputs inputs);

/// Runs `work`, which only enqueues on `compute`, on all ranks at once; returns its seconds on this
/// one. Collective.
double time_together(runtime::Communicator& world, const runtime::Stream& compute,
                     const std::function<void()>& work);
/// Collective; complete on every rank.
ReplayFigures gather_figures(const parallel::Attention& attention, const ReplayRank& rank,
                             double seconds);
void print_summary(const AttentionOptions& options, const std::string& scheme,
                   const ReplayFigures& figures);

}  // namespace longhaul::launch
