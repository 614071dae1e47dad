#include <algorithm>
#include <optional>
#include <string_view>

#include "launch/hf_config.h"
#include "launch/hf_keys_impl.h"
#include "launch/hf_model_keys_impl.h"
#include "launch/hf_rope_impl.h"
#include "models/family.h"
#include "models/layer_types.h"
#include "runtime/config/schema.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using runtime::fail;

constexpr const char* kLength = "max_position_embeddings";

/// Keys that only say how layer_types came about.
constexpr std::string_view kPatterns[] = {"layer_types", "full_attention_interval",
                                          "sliding_window_pattern", "max_window_layers",
                                          "use_sliding_window"};

bool says_pattern(std::string_view name) { return std::ranges::count(kPatterns, name) != 0; }

/// write_rope() writes them.
bool is_rope_key(std::string_view name) {
  return name == "rope_theta" || name == "rope_local_base_freq" ||
         name == "partial_rotary_factor" || name == "original_max_position_embeddings";
}

std::vector<std::string> layers_of(const ModelConfig& model) {
  return models::family_of(model.architecture).layers(model);
}

/// A float here, and an integer in transformers.
bool is_whole_key(std::string_view name) { return name == "query_pre_attn_scalar"; }
HfJson whole(const HfJson& value) {
  const auto number = value.get<double>();
  return number < 1e15 ? HfJson(static_cast<std::int64_t>(number)) : HfJson();
}

/// What transformers' class of the family cannot say would be lost without a word.
void require_exportable(const ModelConfig& model) {
  const std::string& family = model.architecture;
  if (!converts(family))
    fail(ExitCode::config, "model.architecture = \"", family,
         "\": this family trains, but Hugging Face folders of it are not written yet");
  const auto refuse = [&](const std::string& key, const HfJson& value) {
    fail(ExitCode::config, "model.", key, " = ", shown_json(value), ": a ", family,
         " of transformers has no such option, and would be another model without it");
  };
  for (const auto& [key, value] : model_values(model)) {
    if (is_whole_key(key) && has_hf_key(family, key) && value != whole(value))
      fail(ExitCode::config, "model.", key, " = ", shown_json(value), ": a ", family,
           " of transformers has a whole number there");
    if (has_hf_key(family, key) || value == false || value == 0 || value == "softmax") continue;
    const bool all_full =
        key == "layer_types" && std::ranges::none_of(model.layer_types, models::is_sliding);
    if (!all_full) refuse(key, value);
  }
  if (const std::string type = models::rope_type_of(model.rope_scaling);
      !has_hf_rope_type(family, type))
    fail(ExitCode::config, "model.rope_scaling.rope_type = \"", type, "\": a ", family,
         " of transformers has longrope or default only");
}

/// The length that the model was first trained for stands beside what stretches it, so that
/// max_position_embeddings may grow.
void spell_original_length(ModelConfig& model) {
  models::RopeScaling& scaling = model.rope_scaling;
  if (scaling.rope_type != "yarn" && scaling.rope_type != "llama3") return;
  if (scaling.original_max_position_embeddings || model.original_max_position_embeddings) return;
  scaling.original_max_position_embeddings = models::original_length(model);
}

/// Whether a source says its layers by a word that transformers 5.24 writes and does not read.
bool hides_pattern(const HfJson& source) {
  const auto says = [&](const char* key) { return !source.value(key, HfJson()).is_null(); };
  return says("_sliding_window_pattern") && !says("sliding_window_pattern") && !says("layer_types");
}

/// Whether nothing of the rotary embedding follows from max_position_embeddings.
bool length_is_free(const ModelConfig& model) {
  const std::optional<std::string>& type = model.rope_scaling.rope_type;
  return type != "dynamic" && type != "longrope";
}

}  // namespace

std::string hf_config_text(const ModelConfig& as_given, const HfExport& exported) {
  require_exportable(as_given);
  ModelConfig model = as_given;
  spell_original_length(model);
  const std::string& family = model.architecture;
  const bool fresh = exported.source.empty();
  HfJson json = fresh ? HfJson::object() : parse_hf_json(exported.source, kHfConfigName);
  if (!json.contains("architectures")) json["architectures"] = {causal_lm_class(family)};
  put_json(json, "model_type", family);
  const std::vector<std::string> layers = layers_of(model);
  const bool slides = std::ranges::any_of(layers, models::is_sliding);
  for (const auto& [name, value] : model_values(model)) {
    if (name.find('.') != name.npos || is_rope_key(name) || !has_hf_key(family, name)) continue;
    // How a source says a pattern, and a width of windows that there are none of, is its own.
    if (!fresh && (says_pattern(name) || (name == "sliding_window" && !slides))) continue;
    const bool uncapped = name.ends_with("_softcapping") && value == 0;
    put_json(json, name, uncapped ? HfJson() : is_whole_key(name) ? whole(value) : value);
  }
  if (fresh) {
    if (has_hf_key(family, "layer_types")) json["layer_types"] = layers;
    // What the model does not have, and transformers' class would; a length is never null there.
    for (const auto& [name, value] : class_defaults(family)) {
      if (!json.contains(name) && name != kLength) json[name] = nullptr;
    }
    for (const char* const id : {"bos_token_id", "eos_token_id", "pad_token_id"})
      json[id] = nullptr;
  } else if (hides_pattern(json)) {
    json["layer_types"] = layers;
  }
  write_rope(json, model);
  if (exported.trained_length > 0) {
    const HfJson before = json.value(kLength, HfJson());
    // Where something follows from it, it stands there.
    if (!before.is_number_integer() ||
        (length_is_free(model) && before.get<std::int64_t>() < exported.trained_length))
      json[kLength] = exported.trained_length;
  }
  json["torch_dtype"] = json["dtype"] = exported.dtype;
  return json.dump(2, ' ', false, HfJson::error_handler_t::replace) + "\n";
}

bool is_length_key(const std::string& name) {
  return name == "rope_theta" || name == "rope_local_base_freq" ||
         name == "max_position_embeddings" || name == "original_max_position_embeddings" ||
         name.starts_with("rope_scaling.");
}

std::vector<ModelDifference> compare_models(const ModelConfig& before, const ModelConfig& after) {
  TrainConfig a, b;
  a.model = before;
  b.model = after;
  std::vector<ModelDifference> differences;
  const auto add = [&](const std::string& name, const std::optional<std::string>& was,
                       const std::optional<std::string>& is) {
    if (was != is) differences.push_back({name, was.value_or("not set"), is.value_or("not set")});
  };
  const bool comparable = before.architecture == after.architecture &&
                          before.num_hidden_layers == after.num_hidden_layers;
  const std::vector<std::string> layers = layers_of(before);
  const bool slides = std::ranges::any_of(layers, models::is_sliding);
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    constexpr std::string_view kModel = "model.";
    const std::string path = key.path();
    if (!path.starts_with(kModel)) continue;
    const std::string name = path.substr(kModel.size());
    if (says_pattern(name) || (name == "sliding_window" && comparable && !slides)) continue;
    add(name, runtime::value_text(key, a), runtime::value_text(key, b));
  }
  if (comparable && layers != layers_of(after)) {
    a.model.layer_types = layers;
    b.model.layer_types = layers_of(after);
    const runtime::ConfigKey& key = *config_schema().find("model.layer_types");
    add("layer_types", runtime::value_text(key, a), runtime::value_text(key, b));
  }
  return differences;
}

}  // namespace longhaul::launch
