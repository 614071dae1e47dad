#include "launch/hf_model_keys_impl.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <variant>

#include "launch/model_keys.h"
#include "runtime/config/schema.h"

namespace longhaul::launch {
namespace {

constexpr std::string_view kModel = "model.";

template <class Value>
HfJson json_of(const Value* value) {
  return *value;
}
template <class Value>
HfJson json_of(const std::optional<Value>* value) {
  return *value ? HfJson(**value) : HfJson();
}
template <class Element>
HfJson json_of(const std::vector<Element>* list) {
  return list->empty() ? HfJson() : HfJson(*list);
}
HfJson json_of(const runtime::DType* dtype) { return runtime::name(*dtype); }
HfJson json_of(const runtime::WordOrInteger* value) {
  return value->word.empty() ? HfJson(value->integer) : HfJson(value->word);
}
/// No key of [model] is a list of tables.
HfJson json_of(const runtime::ConfigTables*) { return {}; }

}  // namespace

bool has_model_key(const std::string& family, std::string_view name) {
  const runtime::ConfigKey* key = config_schema().find(fmt::format("{}{}", kModel, name));
  if (key == nullptr) return false;
  const std::vector<std::string> users = families_of_key(*key);
  return users.empty() || std::ranges::count(users, family) != 0;
}

std::vector<std::pair<std::string, HfJson>> model_values(const ModelConfig& model) {
  TrainConfig config;
  config.model = model;
  std::vector<std::pair<std::string, HfJson>> values;
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    const std::string path = key.path();
    if (!path.starts_with(kModel)) continue;
    std::string name = path.substr(kModel.size());
    if (name == "architecture" || !has_model_key(model.architecture, name)) continue;
    HfJson value = std::visit([](const auto* slot) { return json_of(slot); }, key.slot(config));
    if (!value.is_null()) values.emplace_back(std::move(name), std::move(value));
  }
  return values;
}

std::string model_section(const ModelConfig& model) {
  TrainConfig config;
  config.model = model;
  std::string text, section;
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    const std::string path = key.path();
    if (!path.starts_with(kModel)) continue;
    if (!has_model_key(model.architecture, path.substr(kModel.size()))) continue;
    const std::optional<std::string> value = runtime::value_text(key, config);
    if (!value) continue;
    if (section != key.section) {
      section = key.section;
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", section);
    }
    text += fmt::format("{} = {}\n", key.name, *value);
  }
  return text;
}

}  // namespace longhaul::launch
