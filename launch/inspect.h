#pragma once
// `longhaul inspect`: what a corpus, a checkpoint or a file of weights holds, after verifying it.

#include <filesystem>
#include <string>

namespace longhaul::launch {

struct InspectOptions {
  /// A corpus file, a checkpoint (step-00000010), a folder of checkpoints (its newest is
  /// inspected), a .safetensors file, or a Hugging Face folder of them.
  std::filesystem::path path;
  bool add_entropy = false;  ///< first bring a corpus of version 1 to version 2
  bool brief = false;  ///< without lists: the histogram of lengths, tensors, files, configuration
};

/// A description in lines. Reads every byte and checks every hash, token and offset; of
/// safetensors, which have no digests, the headers.
/// Throws: Error(io) for what cannot be read, Error(data) for damage or a path that is neither,
/// Error(usage) for add_entropy with a checkpoint.
std::string inspect(const InspectOptions& options);

}  // namespace longhaul::launch
