#pragma once
// The runs that have trained some weights, one after the other, each from the checkpoint of the one
// before it (checkpoint.initial_load_path). A checkpoint carries those before its own in
// CheckpointMetadata::extra.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/io/checkpoint.h"

namespace longhaul::launch {

struct TrainedRun {
  std::string checkpoint;  ///< path of the one that the next run began from, or of the last
  std::int64_t steps = 0, tokens = 0;
  std::int64_t seq_len = 0;  ///< 0: the checkpoint does not say it
};

/// Their name in CheckpointMetadata::extra.
inline constexpr const char* kEarlierRunsKey = "earlier_runs";

std::string to_text(const std::vector<TrainedRun>& runs);
/// Those that a checkpoint comes from, its own last, if that has made a step. Throws Error(data)
/// naming the checkpoint's `path`.
std::vector<TrainedRun> trained_runs(const runtime::CheckpointMetadata& checkpoint,
                                     const std::string& path);

}  // namespace longhaul::launch
