#pragma once
// Private to runtime/text: a value of a JSON file and its place there, for errors that name it.

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/error.h"

namespace longhaul::runtime {

/// Members and elements are asked for by type; what is missing or of another type is Error(data).
class JsonValue {
 public:
  /// `place`: "FILE:" for the file's value itself.
  JsonValue(const nlohmann::json& value, std::string place)
      : value_(&value), place_(std::move(place)) {}

  const std::string& place() const { return place_; }  ///< "FILE: model.merges[3]"
  const nlohmann::json& raw() const { return *value_; }
  template <class... Parts>
  [[noreturn]] void bad(const Parts&... parts) const {
    fail(ExitCode::data, place_, is_file() ? " " : ": ", parts...);
  }

  /// An object with no members but these.
  const JsonValue& only(std::initializer_list<std::string_view> names) const;
  /// Whether an object has the member and it is not null.
  bool has(std::string_view name) const;
  JsonValue at(std::string_view name) const;
  std::vector<JsonValue> elements() const;
  const std::string& text() const;
  bool boolean() const;
  std::int64_t integer(std::int64_t most) const;  ///< from 0

  const std::string& text(std::string_view name) const { return at(name).text(); }
  /// Where the member is missing or null: `otherwise`.
  bool boolean(std::string_view name, bool otherwise) const {
    return has(name) ? at(name).boolean() : otherwise;
  }

 private:
  bool is_file() const { return place_.ends_with(':'); }

  const nlohmann::json* value_;
  std::string place_;
};

}  // namespace longhaul::runtime
