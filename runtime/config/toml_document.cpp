#include "runtime/config/toml_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#include <toml++/toml.h>
#pragma GCC diagnostic pop

namespace longhaul::runtime {
namespace {

TextPosition position_of(const toml::source_position& source) {
  return {std::max<std::uint32_t>(1, source.line), std::max<std::uint32_t>(1, source.column)};
}

const char* type_name(toml::node_type type) {
  switch (type) {
    case toml::node_type::date:
      return "a date";
    case toml::node_type::time:
      return "a time";
    case toml::node_type::date_time:
      return "a date and time";
    default:
      return "something else";
  }
}

TomlTable table_of(const toml::table& table);

TomlValue value_of(const toml::node& node) {
  TomlValue result{OtherToml{type_name(node.type())}, position_of(node.source().begin)};
  if (const auto* text = node.as_string()) result.value = text->get();
  if (const auto* integer = node.as_integer()) result.value = std::int64_t{integer->get()};
  if (const auto* number = node.as_floating_point()) result.value = number->get();
  if (const auto* boolean = node.as_boolean()) result.value = boolean->get();
  if (const auto* array = node.as_array()) {
    TomlArray elements;
    for (const toml::node& element : *array) elements.push_back(value_of(element));
    result.value = std::move(elements);
  }
  if (const auto* table = node.as_table()) result.value = table_of(*table);
  return result;
}

bool before(TextPosition a, TextPosition b) {
  return a.line != b.line ? a.line < b.line : a.column < b.column;
}

TomlTable table_of(const toml::table& table) {
  TomlTable entries;
  for (const auto& [name, value] : table) {
    entries.push_back({std::string(name.str()), position_of(name.source().begin), value_of(value)});
  }
  std::sort(entries.begin(), entries.end(), [](const TomlEntry& a, const TomlEntry& b) {
    return before(a.key_position, b.key_position);
  });
  return entries;
}

TomlSection section_of(const toml::key& key, const toml::node& node) {
  TomlSection section{std::string(key.str()), position_of(key.source().begin), std::nullopt, {}};
  const toml::table* table = node.as_table();
  if (table == nullptr) {
    section.stray_value = value_of(node);
    return section;
  }
  section.entries = table_of(*table);
  return section;
}

/// In the parser's words, but for a float that is too large, whose digits it does not blame.
std::string reason_of(const toml::parse_error& error) {
  std::string text(error.description());
  const std::string vague = "could not be interpreted as a value";
  if (text.find("floating-point") != std::string::npos && text.ends_with(vague))
    text.replace(text.size() - vague.size(), vague.size(), kBeyond64Bits);
  return text;
}

}  // namespace

std::variant<std::vector<TomlSection>, TomlSyntaxError> parse_toml(const std::string& text) {
  std::vector<TomlSection> sections;
  try {
    const toml::table root = toml::parse(std::string_view(text));
    for (const auto& [key, node] : root) sections.push_back(section_of(key, node));
  } catch (const toml::parse_error& error) {
    return TomlSyntaxError{reason_of(error), position_of(error.source().begin)};
  }
  std::sort(sections.begin(), sections.end(), [](const TomlSection& a, const TomlSection& b) {
    return before(a.position, b.position);
  });
  return sections;
}

std::optional<TomlValue> parse_toml_value(const std::string& text, std::string* wrong) {
  // A line break would let the text declare further keys.
  if (text.find_first_of("\r\n") != std::string::npos) return std::nullopt;
  try {
    const toml::table root = toml::parse("value = " + text);
    return value_of(*root.get("value"));
  } catch (const toml::parse_error& error) {
    if (wrong != nullptr) *wrong = reason_of(error);
    return std::nullopt;
  }
}

std::string quote_toml(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (byte < 0x20 || byte == 0x7f) {
      quoted += fmt::format("\\u{:04X}", byte);
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string toml_number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string describe_type(const TomlValue& value) {
  struct Name {
    std::string operator()(std::int64_t) const { return "an integer"; }
    std::string operator()(double) const { return "a float"; }
    std::string operator()(bool) const { return "a boolean"; }
    std::string operator()(const std::string&) const { return "a string"; }
    std::string operator()(const TomlArray&) const { return "an array"; }
    std::string operator()(const TomlTable&) const { return "a table"; }
    std::string operator()(const OtherToml& other) const { return other.what; }
  };
  return std::visit(Name{}, value.value);
}

std::string describe_value(const TomlValue& value) {
  constexpr std::size_t kLongest = 80;
  struct Text {
    std::string operator()(std::int64_t v) const { return fmt::format("{}", v); }
    std::string operator()(double v) const { return toml_number(v); }
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(const std::string& v) const {
      return quote_toml(v.size() <= kLongest ? v : v.substr(0, kLongest) + "...");
    }
    std::string operator()(const TomlArray& elements) const {
      std::string text;
      for (const TomlValue& element : elements) {
        if (text.size() > kLongest) return "[" + text + ", ...]";
        text += (text.empty() ? "" : ", ") + describe_value(element);
      }
      return "[" + text + "]";
    }
    std::string operator()(const TomlTable& entries) const {
      std::string text;
      for (const TomlEntry& entry : entries) {
        if (text.size() > kLongest) return "{" + text + ", ...}";
        text += fmt::format("{}{} = {}", text.empty() ? "" : ", ", entry.key,
                            describe_value(entry.value));
      }
      return "{" + text + "}";
    }
    std::string operator()(const OtherToml& other) const { return other.what; }
  };
  return std::visit(Text{}, value.value);
}

}  // namespace longhaul::runtime
