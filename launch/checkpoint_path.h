#pragma once
// Checkpoints as people name them.

#include <cstdint>
#include <filesystem>
#include <optional>

namespace longhaul::launch {

/// A checkpoint of a folder of checkpoints.
struct CheckpointPlace {
  std::filesystem::path folder;
  std::int64_t step = 0;
};

/// What `path` names: a checkpoint (step-00000010), a folder of checkpoints or the output folder of
/// a run, of which it is the newest; nothing where there is none.
std::optional<CheckpointPlace> find_checkpoint(const std::filesystem::path& path);

}  // namespace longhaul::launch
