#include <cstdint>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "launch/hf_json_impl.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using runtime::fail;

constexpr int kMostDepth = 32;
constexpr std::size_t kMostNames = 4096;  // of an object, whose names are searched one by one
constexpr std::size_t kMostShown = 60;

}  // namespace

HfJson parse_hf_json(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> names;  // of the objects around the place
  const auto judge = [&](int depth, HfJson::parse_event_t event, HfJson& parsed) {
    using enum HfJson::parse_event_t;
    if (depth > kMostDepth)
      fail(ExitCode::data, where, ": is nested deeper than ", kMostDepth, " levels");
    if (event == object_start) {
      names.emplace_back();
    } else if (event == object_end) {
      names.pop_back();
    } else if (event == key) {
      if (!names.back().insert(parsed.get<std::string>()).second)
        fail(ExitCode::data, where, ": has ", shown_json(parsed), " twice in an object");
      if (names.back().size() > kMostNames)
        fail(ExitCode::data, where, ": an object has more than ", kMostNames, " names");
    }
    return true;
  };
  try {
    HfJson json = HfJson::parse(text, judge);
    if (!json.is_object()) fail(ExitCode::data, where, ": is no JSON object");
    return json;
  } catch (const HfJson::exception& error) {
    fail(ExitCode::data, where, ": is no JSON: ", error.what());
  }
}

runtime::TomlValue toml_value(const HfJson& value) {
  using runtime::OtherToml;
  switch (value.type()) {
    case HfJson::value_t::boolean:
      return {value.get<bool>(), {}};
    case HfJson::value_t::number_unsigned:
      if (value.get<std::uint64_t>() >
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        return {OtherToml{"an integer beyond 64 bits"}, {}};
      [[fallthrough]];
    case HfJson::value_t::number_integer:
      return {value.get<std::int64_t>(), {}};
    case HfJson::value_t::number_float:
      return {value.get<double>(), {}};
    case HfJson::value_t::string:
      return {value.get<std::string>(), {}};
    case HfJson::value_t::array: {
      runtime::TomlArray array;
      for (const HfJson& element : value) array.push_back(toml_value(element));
      return {std::move(array), {}};
    }
    case HfJson::value_t::null:
      return {OtherToml{"null"}, {}};
    default:
      return {OtherToml{"an object"}, {}};
  }
}

bool same_json(const HfJson& a, const HfJson& b) { return HfJson::diff(a, b).empty(); }

void put_json(HfJson& object, const std::string& key, const HfJson& value) {
  const auto found = object.find(key);
  if (found == object.end() || !same_json(*found, value)) object[key] = value;
}

std::string shown_json(const HfJson& value) {
  std::string text = value.dump(-1, ' ', true, HfJson::error_handler_t::replace);  // ASCII
  if (text.size() > kMostShown) text = text.substr(0, kMostShown) + "...";
  return text;
}

}  // namespace longhaul::launch
