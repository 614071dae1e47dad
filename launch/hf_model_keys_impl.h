#pragma once
// Private to the files about Hugging Face folders: the keys of [model] by name, with the values of
// a model as JSON.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "launch/hf_json_impl.h"
#include "launch/train_config.h"

namespace longhaul::launch {

/// Whether a family uses this key: "head_dim", or "rope_scaling.factor" in a table.
bool has_model_key(const std::string& family, std::string_view name);

/// Every key of [model] that has a value, but architecture, in the schema's order.
std::vector<std::pair<std::string, HfJson>> model_values(const ModelConfig& model);

/// Those as the section of a configuration: "[model]\narchitecture = ...".
std::string model_section(const ModelConfig& model);

}  // namespace longhaul::launch
