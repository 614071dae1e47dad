#pragma once
// `longhaul inspect`: what a corpus or a checkpoint holds, after verifying all of it.

#include <filesystem>
#include <string>

namespace longhaul::launch {

struct InspectOptions {
  /// A corpus file, a checkpoint (step-00000010), or a folder of checkpoints (its newest is
  /// inspected).
  std::filesystem::path path;
};

/// A description in lines. Reads every byte and checks every hash, token and offset.
/// Throws: Error(io) for what cannot be read, Error(data) for damage or a path that is neither.
std::string inspect(const InspectOptions& options);

}  // namespace longhaul::launch
