#pragma once
// `longhaul convert`: weights from a Hugging Face folder to a checkpoint, and back.

#include <filesystem>
#include <optional>
#include <string>

#include "launch/weight_source.h"

namespace longhaul::launch {

struct ConvertOptions {
  std::filesystem::path source, output;
  /// Of an exported folder: "float32", "bfloat16" or "float16"; none: what the tensors had in the
  /// folder that they came from, or float32.
  std::optional<std::string> dtype;
};

/// Writes the other format, tensor by tensor, so that memory holds a few rows of one, and prints
/// what was done. Throws: Error(usage) when the output exists, or holds checkpoints where some are
/// written; Error(data) for damaged input or a value that the dtype cannot hold, Error(config) for
/// a model that is not built here or cannot be said there, Error(io). Where it fails, a Hugging
/// Face folder does not exist, and a folder of checkpoints may be there and holds none.
int run_convert(const ConvertOptions& options);

/// Step 0 of a folder of checkpoints, which may exist without any: the weights as float32, without
/// an optimizer's state.
void import_folder(const HfFolder& source, const std::filesystem::path& output);

/// A Hugging Face folder. What came from one and was not trained since becomes the same files.
void export_checkpoint(const CheckpointWeights& source, const ConvertOptions& options);

}  // namespace longhaul::launch
