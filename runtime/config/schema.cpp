#include "runtime/config/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

std::string number_text(double value) { return fmt::format("{}", value); }

std::string bounds_text(const ConfigKey& key, bool integer) {
  const bool low = key.minimum > std::numeric_limits<double>::lowest();
  const bool high = key.maximum < (integer ? 1 << 16 : std::numeric_limits<double>::max());
  std::string text;
  if (low) {
    text += (key.above_minimum ? " above " : " of at least ") + number_text(key.minimum);
  }
  if (high) {
    text += low ? " and " : " ";
    text += (key.below_maximum ? "below " : "at most ") + number_text(key.maximum);
  }
  return text;
}

struct ExpectationOf {
  const ConfigKey& key;
  std::string quoted_choices() const {
    std::string text;
    for (const std::string& choice : key.choices) {
      text += (text.empty() ? "\"" : ", \"") + choice + "\"";
    }
    return text;
  }
  std::string integer() const {
    std::string text = "an integer" + bounds_text(key, true);
    if (key.also) text += fmt::format(", or {}", *key.also);
    return text;
  }
  std::string operator()(std::int64_t*) const { return integer(); }
  std::string operator()(std::optional<std::int64_t>*) const { return integer(); }
  std::string operator()(double*) const { return "a number" + bounds_text(key, false); }
  std::string operator()(std::optional<double>*) const {
    return (*this)(static_cast<double*>(nullptr));
  }
  std::string operator()(std::optional<bool>*) const {
    return (*this)(static_cast<bool*>(nullptr));
  }
  std::string operator()(bool*) const { return "true or false"; }
  std::string operator()(DType*) const { return "one of " + quoted_choices(); }
  std::string operator()(WordOrInteger*) const {
    return "one of " + quoted_choices() + ", or " + integer();
  }
  std::string operator()(std::string*) const {
    if (key.choices.empty()) return "a non-empty string";
    return key.choices.size() == 1 ? quoted_choices() : "one of " + quoted_choices();
  }
  std::string operator()(std::optional<std::string>*) const {
    return (*this)(static_cast<std::string*>(nullptr));
  }
  std::string operator()(std::vector<std::string>*) const {
    return "a list, each element " + (*this)(static_cast<std::string*>(nullptr));
  }
  std::string operator()(std::vector<std::int64_t>*) const {
    return "a list, each element " + integer();
  }
  std::string operator()(std::vector<double>*) const {
    return "a list, each element " + (*this)(static_cast<double*>(nullptr));
  }
  std::string operator()(ConfigTables*) const {
    std::string names;
    for (const ConfigKey& column : key.columns)
      names += (names.empty() ? "" : ", ") + std::string(column.name);
    return "a list, each element a table of " + names;
  }
};

}  // namespace

std::string ConfigKey::path() const { return fmt::format("{}.{}", section, name); }

namespace {

/// As synonyms are written: "Max-Steps" is max_steps.
std::string normal(std::string_view word) {
  std::string text;
  for (const char c : word)
    text += c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

bool is_among(const std::string& word, const std::string& words) {
  return !word.empty() && (" " + words + " ").find(" " + word + " ") != std::string::npos;
}

}  // namespace

ConfigSynonyms::Found ConfigSynonyms::find_key(std::string_view section,
                                               std::string_view name) const {
  const std::string word = normal(name), qualified = normal(section) + "." + word;
  for (const std::string& wanted : {qualified, word}) {
    for (const Key& key : keys) {
      if (is_among(wanted, key.words)) return {&key, wanted == qualified};
    }
  }
  return {};
}

const ConfigSynonyms::Section* ConfigSynonyms::find_section(std::string_view name) const {
  for (const Section& section : sections) {
    if (is_among(normal(name), section.words)) return &section;
  }
  return nullptr;
}

ConfigSchema::ConfigSchema(std::vector<ConfigKey> keys, std::set<std::string> retired,
                           ConfigSynonyms synonyms)
    : keys_(std::move(keys)), retired_(std::move(retired)), synonyms_(synonyms) {
  for (const ConfigKey& key : keys_) {
    if (!sections_.empty() && sections_.back() == key.section) continue;
    LONGHAUL_CHECK(std::ranges::count(sections_, key.section) == 0, "keys of [", key.section,
                   "] stand apart");
    sections_.emplace_back(key.section);
  }
}

const ConfigKey* ConfigSchema::find(std::string_view section, std::string_view name) const {
  for (const ConfigKey& key : keys_) {
    if (section == key.section && name == key.name) return &key;
  }
  return nullptr;
}

const ConfigKey* ConfigSchema::find(std::string_view path) const {
  const std::size_t dot = path.rfind('.');
  return dot == path.npos ? nullptr : find(path.substr(0, dot), path.substr(dot + 1));
}

std::string expectation(const ConfigKey& key, const ConfigSlot& slot) {
  return std::visit(ExpectationOf{key}, slot);
}

}  // namespace longhaul::runtime
