#include "runtime/config/draft.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>

#include "runtime/config/expand.h"
#include "runtime/config/suggest.h"
#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

// What is wrong with a value, or with an element of a list.
struct Wrong {
  const TomlValue* value;
  std::string element;  // "[2]" or "[2].path"; empty for the value itself
  std::string message;
};

// Assigns a TOML value to a key's slot. Returns what is wrong with it.
class Assign {
 public:
  using Problems = std::vector<Wrong>;
  Assign(const ConfigKey& key, const TomlValue& value) : key_(key), value_(value) {}

  /// What is wrong with a word; nothing for one of the choices.
  std::string check_choice(const ConfigSlot& slot, const std::string& text) const {
    if (std::ranges::count(key_.choices, text) != 0) return "";
    for (const auto& [other, reason] : key_.not_choices) {
      if (text == other) return fmt::format("{}; expected {}", reason, expectation(key_, slot));
    }
    const Suggestion near = nearest(text, key_.choices);
    const std::string hint = near.close ? fmt::format("; did you mean \"{}\"?", near.word) : "";
    return "expected " + expectation(key_, slot) + hint;
  }
  std::string check_choice(const std::string& text) const {
    std::string word = text;
    return check_choice(&word, text);
  }

  Problems operator()(std::int64_t* slot) const { return one(element(value_, *slot)); }
  Problems operator()(std::string* slot) const { return one(element(value_, *slot)); }
  Problems operator()(std::vector<std::int64_t>* slot) const { return list(*slot); }
  Problems operator()(std::vector<std::string>* slot) const { return list(*slot); }
  Problems operator()(std::vector<double>* slot) const { return list(*slot); }
  Problems operator()(ConfigTables* slot) const {
    const auto* tables = std::get_if<TomlArray>(&value_.value);
    if (tables == nullptr) return one(wrong_type(slot, value_));
    slot->resize(std::ssize(*tables));
    Problems wrong;
    for (std::int64_t i = 0; i < std::ssize(*tables); ++i) {
      const TomlValue& table = (*tables)[static_cast<std::size_t>(i)];
      const std::string element = fmt::format("[{}]", i);
      if (const auto* entries = std::get_if<TomlTable>(&table.value)) {
        check_names(*entries, element, wrong);
        for (const ConfigKey& column : key_.columns)
          assign(column, table, *entries, slot->row(i), element, wrong);
      } else {
        wrong.push_back({&table, element, wrong_type(slot, table)});
      }
    }
    return wrong;
  }
  template <class Value>
  Problems operator()(std::optional<Value>* slot) const {
    Value value{};
    Problems wrong = (*this)(&value);
    if (wrong.empty()) *slot = value;
    return wrong;
  }
  Problems operator()(double* slot) const { return one(element(value_, *slot)); }
  Problems operator()(bool* slot) const {
    const auto* boolean = std::get_if<bool>(&value_.value);
    if (boolean == nullptr) return one(wrong_type(slot, value_));
    *slot = *boolean;
    return {};
  }
  Problems operator()(DType* slot) const {
    const auto* text = std::get_if<std::string>(&value_.value);
    if (text == nullptr) return one(wrong_type(slot, value_));
    Problems wrong = one(check_choice(slot, *text));
    if (wrong.empty()) *slot = dtype_from_name(*text);
    return wrong;
  }
  Problems operator()(WordOrInteger* slot) const {
    if (const auto* integer = std::get_if<std::int64_t>(&value_.value)) {
      *slot = {"", *integer};
      return one(check_integer(slot, *integer));
    }
    const auto* text = std::get_if<std::string>(&value_.value);
    if (text == nullptr) return one(wrong_type(slot, value_));
    *slot = {*text, 0};
    return one(check_choice(slot, *text));
  }

 private:
  void check_names(const TomlTable& entries, const std::string& element, Problems& wrong) const {
    std::vector<std::string> names;
    for (const ConfigKey& column : key_.columns) names.emplace_back(column.name);
    for (const TomlEntry& entry : entries) {
      if (std::ranges::count(names, entry.key) != 0) continue;
      const Suggestion near = nearest(entry.key, names);
      wrong.push_back(
          {&entry.value, element + "." + entry.key,
           fmt::format("unknown key; expected {}{}", fmt::join(names, ", "),
                       near.close ? fmt::format("; did you mean '{}'?", near.word) : "")});
    }
  }
  /// A column of one table.
  static void assign(const ConfigKey& column, const TomlValue& table, const TomlTable& entries,
                     Configuration& row, const std::string& element, Problems& wrong) {
    const ConfigSlot slot = column.slot(row);
    const auto entry = std::ranges::find(entries, column.name, &TomlEntry::key);
    if (entry != entries.end()) {
      for (const Wrong& found : std::visit(Assign(column, entry->value), slot))
        wrong.push_back({found.value, fmt::format("{}.{}{}", element, column.name, found.element),
                         found.message});
    } else if (column.default_value) {
      const std::optional<TomlValue> value = parse_toml_value(*column.default_value);
      LONGHAUL_CHECK(value && std::visit(Assign(column, *value), slot).empty(), "default of ",
                     column.name, " is ", *column.default_value);
    } else if (column.required()) {
      wrong.push_back(
          {&table, element,
           fmt::format("missing key '{}': expected {}", column.name, expectation(column, slot))});
    }
  }
  Problems one(const std::string& message) const {
    return message.empty() ? Problems{} : Problems{{&value_, "", message}};
  }
  template <class Element>
  Problems list(std::vector<Element>& slot) const {
    const auto* elements = std::get_if<TomlArray>(&value_.value);
    if (elements == nullptr) return one(wrong_type(&slot, value_));
    slot.resize(elements->size());
    Problems wrong;
    for (std::size_t i = 0; i < elements->size(); ++i) {
      const std::string message = element((*elements)[i], slot[i]);
      if (!message.empty()) wrong.push_back({&(*elements)[i], fmt::format("[{}]", i), message});
    }
    return wrong;
  }
  std::string element(const TomlValue& value, std::int64_t& slot) const {
    const auto* integer = std::get_if<std::int64_t>(&value.value);
    if (integer == nullptr) return wrong_type(&slot, value);
    slot = *integer;
    return check_integer(&slot, *integer);
  }
  std::string element(const TomlValue& value, double& slot) const {
    if (const auto* number = std::get_if<double>(&value.value)) {
      slot = *number;
    } else if (const auto* integer = std::get_if<std::int64_t>(&value.value)) {
      slot = static_cast<double>(*integer);
    } else {
      return wrong_type(&slot, value);
    }
    return in_bounds(slot) ? "" : "expected " + expectation(key_, &slot);
  }
  std::string element(const TomlValue& value, std::string& slot) const {
    const auto* text = std::get_if<std::string>(&value.value);
    if (text == nullptr) return wrong_type(&slot, value);
    slot = *text;
    if (!key_.choices.empty()) return check_choice(&slot, *text);
    if (text->empty()) return "expected " + expectation(key_, &slot);
    if (text->find('\0') != std::string::npos) return "expected a string without NUL";
    if (!key_.is_path) return "";
    ExpandedPath expanded = expand_path(*text);
    slot = std::move(expanded.path);
    return expanded.wrong;
  }

  std::string wrong_type(const ConfigSlot& slot, const TomlValue& value) const {
    return fmt::format("expected {}, got {}", expectation(key_, slot), describe_type(value));
  }
  bool in_bounds(double number) const {  // false for NaN
    const bool low = key_.above_minimum ? number > key_.minimum : number >= key_.minimum;
    const bool high = key_.below_maximum ? number < key_.maximum : number <= key_.maximum;
    return low && high;
  }
  std::string check_integer(const ConfigSlot& slot, std::int64_t integer) const {
    if (key_.also == integer || in_bounds(static_cast<double>(integer))) return "";
    if (static_cast<double>(integer) > key_.maximum) {
      return fmt::format("expected at most {}", static_cast<std::int64_t>(key_.maximum));
    }
    return "expected " + expectation(key_, slot);
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

void ConfigDraft::set(const std::string& path, TomlValue value, const ConfigPlace& place) {
  values_[path] = {std::move(value), place};
}

const TomlValue* ConfigDraft::given(const std::string& path) const {
  const auto found = values_.find(path);
  return found != values_.end() ? &found->second.value : nullptr;
}

void ConfigDraft::fill(bool stored) {
  filled_ = true;
  for (const ConfigKey& key : schema_->keys()) {
    const std::string path = key.path();
    const ConfigSlot slot = key.slot(configuration());
    const auto& absent =
        stored && key.before_it_existed ? key.before_it_existed : key.default_value;
    if (absent) {
      const std::optional<TomlValue> value = parse_toml_value(*absent);
      LONGHAUL_CHECK(value.has_value(), "default of ", path, " is ", *absent);
      const auto wrong = std::visit(Assign(key, *value), slot);
      LONGHAUL_CHECK(wrong.empty(), "default of ", path, ": ", wrong[0].message);
    }
    const auto found = values_.find(path);
    if (found != values_.end()) {
      for (const Wrong& wrong : std::visit(Assign(key, found->second.value), slot))
        value_problem(path, *wrong.value, wrong.element, wrong.message);
    } else if (key.required()) {
      missing(path);
    }
  }
}

void ConfigDraft::value_problem(const std::string& path, const TomlValue& value,
                                const std::string& element, const std::string& message) {
  bad_.insert(path);
  const ConfigPlace& place = values_.at(path).place;
  problem(place.override_order != 0 ? place : in_file(value.position),
          fmt::format("{}{} = {}: {}", path, element, describe_value(value), message));
}

void ConfigDraft::missing(const std::string& path) {
  bad_.insert(path);
  if (!is_absent(path)) return;
  const ConfigKey* key = schema_->find(path);
  LONGHAUL_CHECK(key != nullptr, "there is no key ", path);
  problem(place_of(path), fmt::format("missing key '{}' in [{}]: expected {}", key->name,
                                      key->section, expectation(*key, key->slot(configuration()))));
}

void ConfigDraft::element_problem(const std::string& path, std::size_t index,
                                  const std::string& message) {
  const TomlValue* list = given(path);
  LONGHAUL_CHECK(list != nullptr, "no list is given for ", path);
  value_problem(path, std::get<TomlArray>(list->value).at(index), fmt::format("[{}]", index),
                message);
}

void ConfigDraft::unknown_word(const std::string& path, std::size_t index,
                               std::span<const std::string> choices) {
  const ConfigKey* key = schema_->find(path);
  const TomlValue* list = given(path);
  LONGHAUL_CHECK(key != nullptr && list != nullptr, "no list of words is given for ", path);
  const TomlValue& value = std::get<TomlArray>(list->value).at(index);
  ConfigKey narrowed = *key;
  narrowed.choices.assign(choices.begin(), choices.end());
  value_problem(path, value, fmt::format("[{}]", index),
                Assign(narrowed, value).check_choice(std::get<std::string>(value.value)));
}

bool ConfigDraft::good(std::initializer_list<const char*> paths) const {
  return filled_ && std::none_of(paths.begin(), paths.end(),
                                 [&](const char* path) { return bad_.contains(path); });
}

ConfigPlace ConfigDraft::place_of(const std::string& path) const {
  const auto value = values_.find(path);
  if (value != values_.end()) return value->second.place;
  for (std::string section = path; section.find('.') != section.npos;) {
    section.erase(section.rfind('.'));
    if (const auto found = sections_.find(section); found != sections_.end()) return found->second;
  }
  return in_file({1, 1});
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
