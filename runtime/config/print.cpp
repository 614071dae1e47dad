// A schema written out: a configuration as TOML and JSON, and the reference table.

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/config/expand.h"
#include "runtime/config/schema.h"
#include "runtime/config/toml_document.h"

namespace longhaul::runtime {
namespace {

// nullopt: the key has no value and is left out.
struct TomlText {
  const ConfigKey& key;
  using Text = std::optional<std::string>;
  template <class Element>
  static Text list(const std::vector<Element>& elements) {
    std::string text = "[";
    for (const Element& element : elements) {
      if (text.size() > 1) text += ", ";
      if constexpr (std::is_same_v<Element, std::string>) {
        text += quote_toml(element);
      } else if constexpr (std::is_same_v<Element, double>) {
        text += toml_number(element);
      } else {
        text += fmt::format("{}", element);
      }
    }
    return text + "]";
  }
  Text operator()(std::int64_t* v) const { return fmt::format("{}", *v); }
  Text operator()(double* v) const { return toml_number(*v); }
  Text operator()(bool* v) const { return *v ? "true" : "false"; }
  Text operator()(std::string* v) const {
    return quote_toml(key.is_path ? unexpanded_path(*v) : *v);
  }
  Text operator()(DType* v) const { return quote_toml(name(*v)); }
  Text operator()(WordOrInteger* v) const {
    return v->word.empty() ? fmt::format("{}", v->integer) : quote_toml(v->word);
  }
  Text operator()(std::vector<std::string>* v) const { return list(*v); }
  Text operator()(std::vector<std::int64_t>* v) const { return list(*v); }
  Text operator()(std::vector<double>* v) const { return list(*v); }
  Text operator()(ConfigTables* v) const {
    std::string text;
    for (std::int64_t i = 0; i < v->size(); ++i) {
      std::string row;
      for (const ConfigKey& column : key.columns) {
        if (const auto value = value_text(column, v->row(i)))
          row += fmt::format("{}{} = {}", row.empty() ? "" : ", ", column.name, *value);
      }
      text += fmt::format("{}{{{}}}", i == 0 ? "" : ", ", row);
    }
    return "[" + text + "]";
  }
  template <class Value>
  Text operator()(std::optional<Value>* v) const {
    return *v ? (*this)(&**v) : std::nullopt;
  }
};

struct JsonValue {
  const ConfigKey& key;
  using Json = nlohmann::ordered_json;
  Json operator()(std::int64_t* v) const { return *v; }
  Json operator()(double* v) const { return *v; }
  Json operator()(bool* v) const { return *v; }
  Json operator()(std::string* v) const { return *v; }
  Json operator()(DType* v) const { return name(*v); }
  Json operator()(WordOrInteger* v) const {
    return v->word.empty() ? Json(v->integer) : Json(v->word);
  }
  Json operator()(std::vector<std::string>* v) const { return *v; }
  Json operator()(std::vector<std::int64_t>* v) const { return *v; }
  Json operator()(std::vector<double>* v) const { return *v; }
  Json operator()(ConfigTables* v) const {
    Json rows = Json::array();
    for (std::int64_t i = 0; i < v->size(); ++i) {
      Json row = Json::object();
      for (const ConfigKey& column : key.columns)
        row[column.name] = std::visit(JsonValue{column}, column.slot(v->row(i)));
      rows.push_back(std::move(row));
    }
    return rows;
  }
  template <class Value>
  Json operator()(std::optional<Value>* v) const {
    return *v ? Json(**v) : Json(nullptr);
  }
};

struct TypeName {
  const ConfigKey& key;
  std::string operator()(std::int64_t*) const { return "integer"; }
  std::string operator()(double*) const { return "float"; }
  std::string operator()(bool*) const { return "boolean"; }
  std::string operator()(std::string*) const { return key.choices.empty() ? "string" : choices(); }
  std::string operator()(DType*) const { return choices(); }
  std::string operator()(WordOrInteger*) const { return choices() + " or integer"; }
  std::string operator()(std::vector<std::string>*) const {
    return "list of " + (key.choices.empty() ? "strings" : choices());
  }
  std::string operator()(std::vector<std::int64_t>*) const { return "list of integers"; }
  std::string operator()(std::vector<double>*) const { return "list of floats"; }
  std::string operator()(ConfigTables* v) const {
    std::string text;
    v->resize(1);
    for (const ConfigKey& column : key.columns) {
      text += fmt::format("{}{} = {}", text.empty() ? "" : ", ", column.name,
                          std::visit(TypeName{column}, column.slot(v->row(0))));
    }
    return "list of `{" + text + "}`";
  }
  template <class Value>
  std::string operator()(std::optional<Value>*) const {
    return (*this)(static_cast<Value*>(nullptr));
  }
  std::string choices() const {
    std::string text;
    for (const std::string& choice : key.choices)
      text += (text.empty() ? "`\"" : ", `\"") + choice + "\"`";
    return text;
  }
};

/// As it may stand in a cell of a Markdown table.
std::string in_cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) escaped += c == '|' ? "\\|" : std::string(1, c);
  return escaped;
}

std::string default_text(const ConfigKey& key) {
  if (key.default_value) return "`" + *key.default_value + "`";
  return key.required() ? "required" : key.derived_default;
}

}  // namespace

std::optional<std::string> value_text(const ConfigKey& key, Configuration& config) {
  auto text = std::visit(TomlText{key}, key.slot(config));
  // A list without elements is as if it were not given, where nothing else stands for that.
  return text == "[]" && !key.default_value ? std::nullopt : text;
}

std::string to_toml(const ConfigSchema& schema, Configuration& config) {
  std::string text;
  std::string_view section;
  for (const ConfigKey& key : schema.keys()) {
    const auto value = value_text(key, config);
    if (!value) continue;
    if (section != key.section) {
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", key.section);
      section = key.section;
    }
    text += fmt::format("{} = {}\n", key.name, *value);
  }
  return text;
}

/// "/model/linear_attn_config/num_heads".
static nlohmann::ordered_json::json_pointer json_place(const ConfigKey& key) {
  std::string path = "/" + key.path();
  std::ranges::replace(path, '.', '/');
  return nlohmann::ordered_json::json_pointer(path);
}

std::string to_json(const ConfigSchema& schema, Configuration& config) {
  nlohmann::ordered_json json;
  for (const ConfigKey& key : schema.keys()) {
    json[json_place(key)] = std::visit(JsonValue{key}, key.slot(config));
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string config_reference(const ConfigSchema& schema, Configuration& config) {
  std::string text = "| key | type | default | meaning |\n|---|---|---|---|\n";
  std::string_view section;
  for (const ConfigKey& key : schema.keys()) {
    if (section != key.section) {
      text += fmt::format("| **[{}]** | | | |\n", key.section);
      section = key.section;
    }
    text += fmt::format("| `{}` | {} | {} | {} |\n", key.name,
                        std::visit(TypeName{key}, key.slot(config)), default_text(key),
                        in_cell(key.explanation));
  }
  return text;
}

}  // namespace longhaul::runtime
