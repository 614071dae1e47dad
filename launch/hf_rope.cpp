#include "launch/hf_rope_impl.h"

#include <fmt/format.h>

#include <initializer_list>
#include <optional>
#include <utility>

#include "launch/config.h"
#include "launch/hf_model_keys_impl.h"
#include "runtime/config/schema.h"

namespace longhaul::launch {
namespace {

constexpr const char *kFull = "full_attention", *kSliding = "sliding_attention";

/// The value, which is no longer there; null where none was.
HfJson take(HfJson& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return nullptr;
  HfJson value = std::move(*found);
  object.erase(found);
  return value;
}

/// Inside beats beside.
void move_up(HfJson& inside, HfJson& config, const char* key, const char* name) {
  HfJson value = take(inside, key);
  if (!value.is_null()) config[name] = std::move(value);
}

/// `type` is the old word for `rope_type`, `su` for longrope.
void spell_type(HfJson& scaling) {
  HfJson old = take(scaling, "type");
  HfJson type = take(scaling, "rope_type");
  if (type.is_null()) type = std::move(old);
  if (type.is_null()) type = "default";
  if (type == "su") type = "longrope";
  scaling["rope_type"] = std::move(type);
}

bool is_default(const HfJson& scaling) {
  return scaling.size() == 1 && scaling.contains("rope_type") && scaling["rope_type"] == "default";
}

void drop_nulls(HfJson& object) {
  for (auto at = object.begin(); at != object.end();) at = at->is_null() ? object.erase(at) : ++at;
}

bool is_nested(const HfJson& parameters) {
  return parameters.contains(kFull) || parameters.contains(kSliding);
}

/// What layers of `full_attention` are turned by, from parameters by the kind of layer; those of
/// the others go to the place that they have in [model].
HfJson of_full_layers(HfJson parameters, HfJson& config, std::vector<std::string>& problems) {
  HfJson sliding = take(parameters, kSliding), full = take(parameters, kFull);
  for (const auto& [name, value] : parameters.items())
    problems.push_back(fmt::format("rope_parameters.{} = {}: expected parameters of {} and {} only",
                                   name, shown_json(value), kFull, kSliding));
  if (sliding.is_object()) {
    move_up(sliding, config, "rope_theta", "rope_local_base_freq");
    drop_nulls(sliding);
    spell_type(sliding);
    if (!is_default(sliding))
      problems.push_back(
          fmt::format("rope_parameters.{} = {}: expected none but rope_theta and the "
                      "type default; scaled windows are not built",
                      kSliding, shown_json(sliding)));
  }
  return full;
}

/// rope_scaling as [model] has it; null where nothing is scaled.
HfJson scaling_of(const ModelConfig& model) {
  HfJson scaling;
  for (const auto& [name, value] : model_values(model)) {
    constexpr std::string_view kTable = "rope_scaling.";
    if (name.starts_with(kTable)) scaling[name.substr(kTable.size())] = value;
  }
  return scaling;
}

}  // namespace

bool has_hf_rope_type(const std::string& family, const HfJson& type) {
  return family != "phi3" || type == "default" || type == "longrope";
}

void read_rope(HfJson& config, const std::string& family, std::vector<std::string>& problems) {
  HfJson old = take(config, "rope_scaling"), parameters = take(config, "rope_parameters");
  for (const auto& [key, value] :
       {std::pair("rope_scaling", &old), {"rope_parameters", &parameters}}) {
    if (value->is_null() || value->is_object()) continue;
    problems.push_back(fmt::format("{} = {}: expected an object or null", key, shown_json(*value)));
    *value = nullptr;
  }
  // Where layers of two kinds turn, transformers reads parameters by their kind only.
  if (has_model_key(family, "rope_local_base_freq") && parameters.is_object() &&
      !parameters.empty() && !is_nested(parameters))
    problems.push_back(
        fmt::format("rope_parameters = {}: transformers ignores these of a {}; expected an object "
                    "of {} and {}, with those of each",
                    shown_json(parameters), family, kFull, kSliding));
  HfJson scaling = parameters;
  if (parameters.is_object() && is_nested(parameters)) {
    // Both are about the same layers, and the old one has the last word key by key.
    scaling = of_full_layers(std::move(parameters), config, problems);
    if (old.is_object() && scaling.is_object()) {
      scaling.update(old);
    } else if (old.is_object()) {
      scaling = std::move(old);
    }
  } else if (old.is_object() && !old.empty()) {
    scaling = std::move(old);
  }
  if (!scaling.is_object()) return;
  drop_nulls(scaling);
  move_up(scaling, config, "rope_theta", "rope_theta");
  move_up(scaling, config, "partial_rotary_factor", "partial_rotary_factor");
  spell_type(scaling);
  if (const HfJson& type = scaling["rope_type"]; !has_hf_rope_type(family, type))
    problems.push_back(
        fmt::format("rope_type = {}: a {} of transformers has longrope or default only",
                    shown_json(type), family));
  // Phi-3 says the original length beside the table, and that one counts.
  const char* const original = "original_max_position_embeddings";
  if (has_model_key(family, original)) {
    HfJson inside = take(scaling, original);
    if (!inside.is_null() && !config.contains(original)) config[original] = std::move(inside);
  }
  if (!is_default(scaling)) config["rope_scaling"] = std::move(scaling);
}

void write_rope(HfJson& config, const ModelConfig& model) {
  const std::string& family = model.architecture;
  const HfJson scaling = scaling_of(model);
  HfJson parameters = scaling.is_null() ? HfJson::object({{"rope_type", "default"}}) : scaling;
  for (const auto& [name, value] : model_values(model)) {
    if (name == "rope_theta" || name == "partial_rotary_factor") {
      put_json(config, name, value);
      parameters[name] = value;
    } else if (name == "original_max_position_embeddings") {
      put_json(config, name, value);
      if (!scaling.is_null()) parameters[name] = value;
    } else if (name == "rope_local_base_freq") {
      put_json(config, name, value);
      HfJson nested = HfJson::object();
      nested[kSliding] = HfJson::object({{"rope_type", "default"}, {"rope_theta", value}});
      nested[kFull] = std::move(parameters);
      parameters = std::move(nested);
    }
  }

  HfJson as_read = config;
  as_read.erase("rope_parameters");
  std::vector<std::string> problems;
  read_rope(as_read, family, problems);
  config["rope_parameters"] = std::move(parameters);
  const HfJson theta = config.value("rope_theta", HfJson());
  const bool same = problems.empty() && config.contains("rope_scaling") &&
                    as_read.value("rope_theta", HfJson()) == theta &&
                    same_json(as_read.value("rope_scaling", HfJson()), scaling);
  if (same) return;
  config["rope_scaling"] = scaling;
  if (family != "phi3" || scaling.size() != 3 || scaling.value("rope_type", "") != "longrope")
    return;
  // transformers 4 wants exactly these keys of it.
  config["rope_scaling"] = HfJson::object({{"type", scaling["rope_type"]},
                                           {"short_factor", scaling["short_factor"]},
                                           {"long_factor", scaling["long_factor"]}});
}

}  // namespace longhaul::launch
