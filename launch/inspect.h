#pragma once
// `longhaul inspect`: what a corpus or a checkpoint holds, after verifying all of it.

#include <filesystem>
#include <string>

namespace longhaul::launch {

struct InspectOptions {
  /// A corpus file, a checkpoint (step-00000010), or a folder of checkpoints (its newest is
  /// inspected).
  std::filesystem::path path;
  bool add_entropy = false;  ///< first bring a corpus of version 1 to version 2
  bool brief = false;  ///< without lists: the histogram of lengths, tensors, files, configuration
};

/// A description in lines. Reads every byte and checks every hash, token and offset.
/// Throws: Error(io) for what cannot be read, Error(data) for damage or a path that is neither,
/// Error(usage) for add_entropy with a checkpoint.
std::string inspect(const InspectOptions& options);

}  // namespace longhaul::launch
