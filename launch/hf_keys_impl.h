#pragma once
// Private to the files about Hugging Face folders: what is known of the keys of a config.json that
// are none of [model].

#include <string>
#include <string_view>
#include <vector>

#include "launch/hf_json_impl.h"

namespace longhaul::launch {

/// The family of a `model_type`: the same word, but where one stands for a part of another model.
std::string family_of_model_type(const std::string& model_type);
/// Of `architectures`, of a family that converts(): "LlamaForCausalLM".
std::string causal_lm_class(const std::string& family);

/// The families whose folders are read and written.
bool converts(const std::string& family);

/// Whether a key of [model] is one of transformers' class as well: "head_dim", or
/// "rope_scaling.factor" in a table.
bool has_hf_key(const std::string& family, std::string_view name);

/// A key that transformers' class gives a value where config.json does not.
struct HfDefault {
  std::string key;
  HfJson value;
};
/// Those that the family has otherwise, or not at all, where [model] does not say them. Source: the
/// configuration classes of transformers 5.24.
std::vector<HfDefault> class_defaults(const std::string& family);

/// Whether it says nothing about the model: ids of tokens, how text is generated, who wrote the
/// file.
bool is_harmless(std::string_view key);

/// What a key that is none of the family's [model] means: "" where this value changes nothing, else
/// why the model cannot be had.
std::string objection(const std::string& family, const std::string& key, const HfJson& value);

}  // namespace longhaul::launch
