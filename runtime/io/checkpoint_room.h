#pragma once
// What is asked of a checkpoint folder before a run relies on it.

#include <cstdint>
#include <filesystem>
#include <span>

#include "runtime/comm/communicator.h"
#include "runtime/io/checkpoint.h"

namespace longhaul::runtime {

/// Creates the folder where it is missing, and proves that every rank can write a file there, which
/// it removes again. Returns the bytes of a checkpoint of these slices of all ranks, within a few
/// per cent. Collective; blocks the host. Throws on every rank alike: Error(io) naming the folder
/// and the reason, and the rank where there are several.
std::int64_t prove_checkpoint_folder(const std::filesystem::path& folder,
                                     std::span<const TensorSlice> slices, Communicator& comm,
                                     const Stream& stream);

/// How many more checkpoints a run writes, and how many its folder still holds.
struct CheckpointPlan {
  std::int64_t checkpoint_bytes = 0;
  std::int64_t free_bytes = 0;
  std::int64_t existing = 0;       ///< of earlier steps, in the folder
  std::int64_t keep_latest_k = 0;  ///< 0: all
  std::int64_t interval = 1, completed_steps = 0, steps = 1;

  /// Until the end of the run, which the last one is of.
  std::int64_t remaining() const;
  /// More than exist now, at most, while one is written before an older one goes.
  std::int64_t needed() const;
  /// That the free bytes hold.
  std::int64_t fitting() const;
  /// The step whose checkpoint does not fit any more; 0 when all do.
  std::int64_t fills_at() const;
};

}  // namespace longhaul::runtime
