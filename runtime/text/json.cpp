#include <algorithm>

#include "runtime/text/json_impl.h"

namespace longhaul::runtime {

const JsonValue& JsonValue::only(std::initializer_list<std::string_view> names) const {
  if (!value_->is_object()) bad("is ", value_->type_name(), ", not an object");
  for (const auto& [name, value] : value_->items()) {
    if (std::ranges::find(names, name) == names.end()) {
      std::string known;
      for (const std::string_view one : names) known += concat(known.empty() ? "" : ", ", one);
      bad("has a member '", name, "', which is not supported; known are ", known);
    }
  }
  return *this;
}

bool JsonValue::has(std::string_view name) const {
  if (!value_->is_object()) bad("is ", value_->type_name(), ", not an object");
  const auto found = value_->find(name);
  return found != value_->end() && !found->is_null();
}

JsonValue JsonValue::at(std::string_view name) const {
  if (!has(name)) bad("has no member '", name, "'");
  return {value_->at(std::string(name)), concat(place_, is_file() ? " " : ".", name)};
}

std::vector<JsonValue> JsonValue::elements() const {
  if (!value_->is_array()) bad("is ", value_->type_name(), ", not an array");
  std::vector<JsonValue> all;
  for (const auto& element : *value_)
    all.emplace_back(element, concat(place_, "[", all.size(), "]"));
  return all;
}

const std::string& JsonValue::text() const {
  if (!value_->is_string()) bad("is ", value_->type_name(), ", not a string");
  return value_->get_ref<const std::string&>();
}

bool JsonValue::boolean() const {
  if (!value_->is_boolean()) bad("is ", value_->type_name(), ", not true or false");
  return value_->get<bool>();
}

std::int64_t JsonValue::integer(std::int64_t most) const {
  const bool whole = value_->is_number_unsigned() &&
                     value_->get<std::uint64_t>() <= static_cast<std::uint64_t>(most);
  if (!whole) {
    bad("is ", value_->is_number() ? value_->dump() : value_->type_name(),
        ", not a whole number from 0 to ", most);
  }
  return value_->get<std::int64_t>();
}

}  // namespace longhaul::runtime
