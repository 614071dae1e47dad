#pragma once
// config.json of a Hugging Face folder: what it says of a model, and how a model is said in one.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/train_config.h"
#include "runtime/dtype.h"

namespace longhaul::launch {

inline constexpr const char* kHfConfigName = "config.json";
inline constexpr std::int64_t kMostHfConfigBytes = std::int64_t{1} << 20;

struct HfConfig {
  std::string text;   ///< of the file
  ModelConfig model;  ///< complete, with vocab_size
  /// "rms_norm_eps = 1e-06": keys that are absent and have a value all the same, by transformers'
  /// class or the family.
  std::vector<std::string> assumed;
};

/// Reads the text of a config.json. `where` names it in errors. What its keys say is what
/// transformers 5.24 makes of them: defaults of the class, both spellings of rotary embedding. Keys
/// that change nothing are passed over by name. Throws: Error(data) for what is no JSON object of a
/// model; Error(config) with every key that is wrong, unknown, or asks for what is not built.
HfConfig parse_hf_config(const std::string& text, const std::string& where);

/// What an exported config.json has to say besides the model.
struct HfExport {
  /// config.json of the folder that the model came from; empty: from none.
  std::string source;
  std::string dtype;  ///< of most tensors: "float32", "bfloat16" or "float16"
  /// Tokens of the longest sequence that it was trained on; 0: none since the source.
  std::int64_t trained_length = 0;
};

/// The text of config.json: the source's keys in their order and, where they say the same, as they
/// are written, with those set that the model says. Both spellings of rotary embedding.
std::string hf_config_text(const ModelConfig& model, const HfExport& exported);

/// The keys of [model] that turn q and k by their positions, which is how a model is taken to
/// longer sequences: what may differ from the weights that a run begins from, or evaluates.
bool is_length_key(const std::string& name);

/// Where two complete models differ, by keys of [model].
struct ModelDifference {
  std::string key;            ///< "rope_scaling.factor"
  std::string before, after;  ///< as in TOML, or "not set"
};
/// Spellings of the same pattern of layers are no difference.
std::vector<ModelDifference> compare_models(const ModelConfig& before, const ModelConfig& after);

}  // namespace longhaul::launch
