#include "runtime/config/draft.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "runtime/config/suggest.h"
#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

// Assigns a TOML value to a key's slot. Returns what is wrong with it, or an empty text.
class Assign {
 public:
  Assign(const ConfigKey& key, const TomlValue& value) : key_(key), value_(value) {}

  std::string operator()(std::int64_t* slot) const {
    const auto* integer = std::get_if<std::int64_t>(&value_.value);
    if (integer == nullptr) return wrong_type();
    *slot = *integer;
    return check_integer(*integer);
  }
  std::string operator()(std::optional<std::int64_t>* slot) const {
    std::int64_t integer = 0;
    std::string wrong = (*this)(&integer);
    if (wrong.empty()) *slot = integer;
    return wrong;
  }
  std::string operator()(double* slot) const {
    if (const auto* number = std::get_if<double>(&value_.value)) {
      *slot = *number;
    } else if (const auto* integer = std::get_if<std::int64_t>(&value_.value)) {
      *slot = static_cast<double>(*integer);
    } else {
      return wrong_type();
    }
    return in_bounds(*slot) ? "" : "expected " + expectation(key_);
  }
  std::string operator()(bool* slot) const {
    const auto* boolean = std::get_if<bool>(&value_.value);
    if (boolean == nullptr) return wrong_type();
    *slot = *boolean;
    return "";
  }
  std::string operator()(std::string* slot) const {
    const auto* text = std::get_if<std::string>(&value_.value);
    if (text == nullptr) return wrong_type();
    *slot = *text;
    if (!key_.choices.empty()) return check_choice(*text);
    if (text->empty()) return "expected " + expectation(key_);
    return text->find('\0') == std::string::npos ? "" : "expected a string without NUL";
  }
  std::string operator()(DType* slot) const {
    const auto* text = std::get_if<std::string>(&value_.value);
    if (text == nullptr) return wrong_type();
    std::string wrong = check_choice(*text);
    if (wrong.empty()) *slot = dtype_from_name(*text);
    return wrong;
  }
  std::string operator()(Resume* slot) const {
    if (const auto* step = std::get_if<std::int64_t>(&value_.value)) {
      *slot = {Resume::Kind::step, *step};
      return check_integer(*step);
    }
    const auto* text = std::get_if<std::string>(&value_.value);
    if (text == nullptr) return wrong_type();
    *slot = {*text == "never" ? Resume::Kind::never : Resume::Kind::automatic, 0};
    return check_choice(*text);
  }

 private:
  std::string wrong_type() const {
    return fmt::format("expected {}, got {}", expectation(key_), describe_type(value_));
  }
  bool in_bounds(double number) const {  // false for NaN
    const bool low = key_.above_minimum ? number > key_.minimum : number >= key_.minimum;
    const bool high = key_.below_maximum ? number < key_.maximum : number <= key_.maximum;
    return low && high;
  }
  std::string check_integer(std::int64_t integer) const {
    if (key_.also == integer || in_bounds(static_cast<double>(integer))) return "";
    if (static_cast<double>(integer) > key_.maximum) {
      return fmt::format("expected at most {}", static_cast<std::int64_t>(key_.maximum));
    }
    return "expected " + expectation(key_);
  }
  std::string check_choice(const std::string& text) const {
    if (std::find(key_.choices.begin(), key_.choices.end(), text) != key_.choices.end()) return "";
    for (const auto& [other, reason] : key_.not_choices) {
      if (text == other) return fmt::format("{}; expected {}", reason, expectation(key_));
    }
    const Suggestion near = nearest(text, key_.choices);
    const std::string hint = near.close ? fmt::format("; did you mean \"{}\"?", near.word) : "";
    return "expected " + expectation(key_) + hint;
  }

  const ConfigKey& key_;
  const TomlValue& value_;
};

// Names and overrides are shown as they were given, but a problem stays one line.
std::string on_one_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    line += byte < 0x20 || byte == 0x7f ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
  }
  return line;
}

}  // namespace

ConfigPlace ConfigDraft::in_file(TextPosition position) const {
  return {0, position, fmt::format("{}:{}:{}", file_, position.line, position.column)};
}

void ConfigDraft::note_section(const std::string& section, const ConfigPlace& place) {
  sections_[section] = place;
}

void ConfigDraft::set(const ConfigKey& key, TomlValue value, const ConfigPlace& place) {
  values_[key.path()] = {std::move(value), place};
}

void ConfigDraft::fill() {
  filled_ = true;
  for (const ConfigKey& key : config_schema()) {
    const std::string path = key.path();
    if (key.default_value) {
      const std::optional<TomlValue> value = parse_toml_value(*key.default_value);
      LONGHAUL_CHECK(value.has_value(), "default of ", path, " is ", *key.default_value);
      const std::string wrong = std::visit(Assign(key, *value), key.slot(config));
      LONGHAUL_CHECK(wrong.empty(), "default of ", path, ": ", wrong);
    }
    const auto found = values_.find(path);
    if (found != values_.end()) {
      const std::string wrong = std::visit(Assign(key, found->second.value), key.slot(config));
      if (!wrong.empty()) key_problem(path, describe_value(found->second.value), wrong);
    } else if (key.required()) {
      bad_.insert(path);
      if (!excused_.contains(path)) {
        problem(place_of(path), fmt::format("missing key '{}' in [{}]: expected {}", key.name,
                                            key.section, expectation(key)));
      }
    }
  }
}

bool ConfigDraft::good(std::initializer_list<const char*> paths) const {
  return filled_ && std::none_of(paths.begin(), paths.end(),
                                 [&](const char* path) { return bad_.contains(path); });
}

ConfigPlace ConfigDraft::place_of(const std::string& path) const {
  const auto value = values_.find(path);
  if (value != values_.end()) return value->second.place;
  const auto section = sections_.find(path.substr(0, path.find('.')));
  return section != sections_.end() ? section->second : in_file({1, 1});
}

void ConfigDraft::problem(const ConfigPlace& place, const std::string& message) {
  problems_.push_back({place, message});
}

void ConfigDraft::key_problem(const std::string& path, const std::string& value,
                              const std::string& message) {
  bad_.insert(path);
  problem(place_of(path), fmt::format("{} = {}: {}", path, value, message));
}

void ConfigDraft::check() const {
  if (problems_.empty()) return;
  std::vector<Problem> sorted = problems_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Problem& a, const Problem& b) {
    const auto order = [](const Problem& p) {
      return std::tuple(p.place.override_order, p.place.position.line, p.place.position.column);
    };
    return order(a) < order(b);
  });
  std::string text = fmt::format("{} problem{} in the configuration {}:", sorted.size(),
                                 sorted.size() == 1 ? "" : "s", file_);
  for (const Problem& entry : sorted) {
    text += '\n' + on_one_line(entry.place.text + ": " + entry.message);
  }
  throw Error(ExitCode::config, text);
}

}  // namespace longhaul::runtime
