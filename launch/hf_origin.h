#pragma once
// Where weights come from: what a Hugging Face folder held, so that its files can be written again.
// A checkpoint carries it in CheckpointMetadata::extra, from training step to training step.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/io/safetensors.h"

namespace longhaul::launch {

struct HfOrigin {
  struct File {
    std::string name;
    runtime::safetensors::Metadata metadata;
    std::vector<runtime::safetensors::TensorInfo> tensors;  ///< sizes stay out of texts
  };
  std::string folder;  ///< absolute
  std::string config;  ///< the text of its config.json
  std::vector<File> files;
  std::optional<std::string> index;  ///< the text of model.safetensors.index.json
};

/// Its name in CheckpointMetadata::extra.
inline constexpr const char* kOriginKey = "huggingface";

std::string to_text(const HfOrigin& origin);
/// What `extra` of a checkpoint holds of it; nothing where the weights come from no such folder.
/// Throws Error(data) naming the checkpoint's `path`.
std::optional<HfOrigin> origin_of(const std::map<std::string, std::string>& extra,
                                  const std::string& path);

}  // namespace longhaul::launch
