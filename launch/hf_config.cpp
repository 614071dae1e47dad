#include "launch/hf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "launch/config.h"
#include "launch/hf_keys_impl.h"
#include "launch/hf_model_keys_impl.h"
#include "launch/hf_rope_impl.h"
#include "models/family.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using runtime::fail;

/// A config.json becoming the [model] of a draft, whose rules then judge it.
class Reader {
 public:
  explicit Reader(const std::string& where) : where_(where), draft_(where) {
    for (const runtime::ConfigKey& key : config_schema().keys()) {
      if (!key.path().starts_with("model.")) draft_.excuse(key.path());
    }
    draft_.note_section("model", place(""));
  }

  /// Puts the keys into the draft.
  void read(HfJson& json, const std::string& family);
  [[noreturn]] void refuse(const std::string& family);
  HfConfig finish(const std::string& text);

 private:
  runtime::ConfigPlace place(const std::string& key) const {
    return {1, {}, key.empty() ? where_ : fmt::format("{}: \"{}\"", where_, key)};
  }
  void problem(const std::string& key, const HfJson& value, const std::string& what) {
    draft_.problem(place(key), fmt::format("{}: {}", shown_json(value), what));
  }
  void set(const std::string& key, const HfJson& value) {
    draft_.set("model." + key, toml_value(value), place(key));
  }
  void read_rope_scaling(const std::string& family, const HfJson& values);

  const std::string where_;
  TrainDraft draft_;
  std::set<std::string> given_;  // keys in the words of [model]
};

void Reader::read_rope_scaling(const std::string& family, const HfJson& values) {
  for (const auto& [name, value] : values.items()) {
    const std::string key = "rope_scaling." + name;
    if (value.is_null() || (value.is_array() && value.empty())) continue;
    if (has_hf_key(family, key)) {
      set(key, value);
    } else {
      problem(key, value, "there is no such key of " + family);
    }
  }
}

/// Keys that say a pattern of layers which another key says already, or that is idle.
void drop_idle(HfJson& json, const std::string& family) {
  if (HfJson hidden = json.value("_sliding_window_pattern", HfJson()); !hidden.is_null()) {
    if (!json.contains("sliding_window_pattern")) json["sliding_window_pattern"] = hidden;
  }
  json.erase("_sliding_window_pattern");
  if (!json.value("layer_types", HfJson()).is_null()) {
    json.erase("sliding_window_pattern");
    json.erase("max_window_layers");
  }
  if (has_hf_key(family, "use_sliding_window") &&
      json.value("use_sliding_window", HfJson(false)) == false) {
    json.erase("sliding_window");
    json.erase("max_window_layers");
  }
}

/// Where null is not the same as nothing: what transformers' class takes it for.
void settle_nulls(HfJson& json, const std::string& family) {
  const auto is_null = [&](const char* key) {
    return has_hf_key(family, key) && json.contains(key) && json[key].is_null();
  };
  for (const char* const cap : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (is_null(cap)) json[cap] = 0.0;
  if (is_null("num_key_value_heads") && json.contains("num_attention_heads"))
    json["num_key_value_heads"] = json["num_attention_heads"];
  if (is_null("sliding_window") && has_hf_key(family, "use_sliding_window"))
    json["use_sliding_window"] = false;
}

void Reader::read(HfJson& json, const std::string& family) {
  std::vector<std::string> problems;
  read_rope(json, family, problems);
  for (const std::string& text : problems) draft_.problem(place(""), text);
  for (const auto& [name, value] : json.items()) {
    if (!value.is_null()) given_.insert(name);
  }
  settle_nulls(json, family);
  for (const auto& [name, value] : class_defaults(family)) {
    if (!json.contains(name) && has_hf_key(family, name)) json[name] = value;
  }
  drop_idle(json, family);
  set("architecture", family);
  for (const auto& [name, value] : json.items()) {
    if (value.is_null() || is_harmless(name)) continue;
    if (has_hf_key(family, name)) {
      set(name, value);
    } else if (value.is_object() && name == "rope_scaling") {
      read_rope_scaling(family, value);
    } else if (const std::string what = objection(family, name, value); !what.empty()) {
      problem(name, value, what);
    }
  }
  draft_.fill();
  check_model(draft_);
  if (draft_.good({"model.vocab_size"}) && !draft_.config.model.vocab_size)
    draft_.problem(place("vocab_size"), "is missing");
}

/// Of a family that there is none of.
void Reader::refuse(const std::string& family) {
  const std::vector<std::string> known = models::family_names();
  if (std::ranges::count(known, family) != 0)
    fail(ExitCode::config, where_, ": \"model_type\": \"", family,
         "\": this family trains, but its folders are not read yet");
  for (const runtime::ConfigKey& key : config_schema().keys()) draft_.excuse(key.path());
  set("architecture", family);
  draft_.fill();
  draft_.check();
  fail(ExitCode::internal, "the family '", family, "' is not refused");
}

HfConfig Reader::finish(const std::string& text) {
  draft_.check();
  HfConfig config{text, draft_.config.model, {}};
  for (const auto& [name, value] : model_values(config.model)) {
    if (!given_.contains(name.substr(0, name.find('.'))))
      config.assumed.push_back(fmt::format("{} = {}", name, shown_json(value)));
  }
  return config;
}

std::string text_of(const HfJson& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string())
    fail(ExitCode::data, where, ": ", found == object.end() ? "has no" : "no text is its", " \"",
         key, "\"; expected the name of a family of models");
  return found->get<std::string>();
}

}  // namespace

HfConfig parse_hf_config(const std::string& text, const std::string& where) {
  HfJson json = parse_hf_json(text, where);
  for (const char* const part : {"text_config", "vision_config", "audio_config"}) {
    const HfJson value = json.value(part, HfJson());
    if (!value.is_null())
      fail(ExitCode::config, where, ": \"", part, "\": ", objection("", part, value));
  }
  const std::string family = family_of_model_type(text_of(json, "model_type", where));
  Reader reader(where);
  if (!converts(family)) reader.refuse(family);
  reader.read(json, family);
  return reader.finish(text);
}

}  // namespace longhaul::launch
