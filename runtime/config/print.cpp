// The schema written out: a configuration as TOML and JSON, its digest, and the reference table.

#include <fmt/format.h>
#include <xxhash.h>

#include <nlohmann/json.hpp>

#include "runtime/config/schema.h"
#include "runtime/config/toml_document.h"

namespace longhaul::runtime {
namespace {

// nullopt: the key has no value and is left out.
struct TomlText {
  using Text = std::optional<std::string>;
  Text operator()(std::int64_t* v) const { return fmt::format("{}", *v); }
  Text operator()(double* v) const { return toml_number(*v); }
  Text operator()(bool* v) const { return *v ? "true" : "false"; }
  Text operator()(std::string* v) const { return quote_toml(*v); }
  Text operator()(DType* v) const { return quote_toml(name(*v)); }
  Text operator()(Resume* v) const {
    if (v->kind == Resume::Kind::step) return fmt::format("{}", v->step);
    return quote_toml(v->kind == Resume::Kind::never ? "never" : "auto");
  }
  Text operator()(std::optional<std::int64_t>* v) const {
    return *v ? Text(fmt::format("{}", **v)) : std::nullopt;
  }
};

struct JsonValue {
  using Json = nlohmann::ordered_json;
  Json operator()(std::int64_t* v) const { return *v; }
  Json operator()(double* v) const { return *v; }
  Json operator()(bool* v) const { return *v; }
  Json operator()(std::string* v) const { return *v; }
  Json operator()(DType* v) const { return name(*v); }
  Json operator()(Resume* v) const {
    if (v->kind == Resume::Kind::step) return v->step;
    return v->kind == Resume::Kind::never ? "never" : "auto";
  }
  Json operator()(std::optional<std::int64_t>* v) const { return *v ? Json(**v) : Json(nullptr); }
};

struct TypeName {
  const ConfigKey& key;
  std::string operator()(std::int64_t*) const { return "integer"; }
  std::string operator()(double*) const { return "float"; }
  std::string operator()(bool*) const { return "boolean"; }
  std::string operator()(std::string*) const { return key.choices.empty() ? "string" : choices(); }
  std::string operator()(DType*) const { return choices(); }
  std::string operator()(Resume*) const { return choices() + " or a step"; }
  std::string operator()(std::optional<std::int64_t>*) const { return "integer"; }
  std::string choices() const {
    std::string text;
    for (const std::string& choice : key.choices)
      text += (text.empty() ? "`\"" : ", `\"") + choice + "\"`";
    return text;
  }
};

std::string default_text(const ConfigKey& key) {
  if (key.default_value) return "`" + *key.default_value + "`";
  return key.required() ? "required" : key.derived_default;
}

}  // namespace

std::string to_toml(const TrainConfig& config) {
  TrainConfig copy = config;
  std::string text;
  std::string_view section;
  for (const ConfigKey& key : config_schema()) {
    if (section != key.section) {
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", key.section);
      section = key.section;
    }
    const auto value = std::visit(TomlText{}, key.slot(copy));
    if (value) text += fmt::format("{} = {}\n", key.name, *value);
  }
  return text;
}

std::string to_json(const TrainConfig& config) {
  TrainConfig copy = config;
  nlohmann::ordered_json json;
  for (const ConfigKey& key : config_schema()) {
    json[key.section][key.name] = std::visit(JsonValue{}, key.slot(copy));
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::uint64_t digest(const TrainConfig& config) {
  const std::string text = to_toml(config);
  return XXH3_64bits(text.data(), text.size());
}

std::string config_reference() {
  TrainConfig unused;
  std::string text = "| key | type | default | meaning |\n|---|---|---|---|\n";
  std::string_view section;
  for (const ConfigKey& key : config_schema()) {
    if (section != key.section) {
      text += fmt::format("| **[{}]** | | | |\n", key.section);
      section = key.section;
    }
    text += fmt::format("| `{}` | {} | {} | {} |\n", key.name,
                        std::visit(TypeName{key}, key.slot(unused)), default_text(key),
                        key.explanation);
  }
  return text;
}

}  // namespace longhaul::runtime
