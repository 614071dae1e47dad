#include "launch/records.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "runtime/error.h"

namespace longhaul::launch {

using Json = nlohmann::json;
using runtime::ExitCode;
using runtime::fail;

namespace {

constexpr std::size_t kReadBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxLineBytes = std::size_t{1} << 31;
constexpr std::size_t kNamed = 10;  // fields in an error
constexpr const char* kForms =
    "\"text\", or \"prompt\" and \"completion\", or \"segments\" of \"text\" and \"weight\"";

/// Reads one line as a record; `place` begins every error.
class RecordParser {
 public:
  RecordParser(std::string place, UnusedFields& unused)
      : place_(std::move(place)), unused_(unused) {}

  WeightedText parse(const std::string& line) {
    const Json json = object_of(line);
    const bool text = json.contains("text"), segments = json.contains("segments");
    const bool pair = json.contains("prompt") || json.contains("completion");
    if (text + pair + segments != 1) {
      std::string names;
      std::size_t named = 0;
      for (const auto& [name, value] : json.items()) {
        if (++named > kNamed) break;
        names += (names.empty() ? "'" : ", '") + name + "'";
      }
      if (json.size() > kNamed) names += ", ...";
      fail(ExitCode::data, place_, ": has the fields ", names.empty() ? "of no form" : names,
           "; expected one of the forms ", kForms);
    }
    if (json.contains("weight") || json.contains("weights")) {
      fail(ExitCode::data, place_, ": field '", json.contains("weight") ? "weight" : "weights",
           "' would not be used: weights are given by segment, {\"segments\": [{\"text\": ..., "
           "\"weight\": ...}]}");
    }
    WeightedText record;
    if (text) record.append(string_of(json, "text", ""), 1);
    if (pair) {
      record.append(string_of(json, "prompt", ""), 0);
      record.append(string_of(json, "completion", ""), 1);
    }
    if (segments) add_segments(json["segments"], record);
    count_unused(json,
                 text       ? std::set<std::string>{"text"}
                 : segments ? std::set<std::string>{"segments"}
                            : std::set<std::string>{"prompt", "completion"},
                 "");
    return record;
  }

 private:
  Json object_of(const std::string& line) const {
    // A name that is there twice would hide a text. Names of the record are at depth 1, of its
    // segments at depth 3.
    std::vector<std::set<std::string>> names(4);
    const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
      const auto inside = static_cast<std::size_t>(depth);
      if (event == Json::parse_event_t::object_start && inside + 1 < names.size())
        names[inside + 1].clear();
      if (event == Json::parse_event_t::key && inside < names.size() &&
          !names[inside].insert(parsed.get<std::string>()).second) {
        fail(ExitCode::data, place_, ": field '", parsed.get<std::string>(), "' is there twice");
      }
      return true;
    };
    Json json;
    try {
      json = Json::parse(line, watch);
    } catch (const Json::exception& error) {
      const auto* parse_error = dynamic_cast<const Json::parse_error*>(&error);
      std::string why = error.what();  // "[json.exception.parse_error.101] parse error ...: why"
      if (const auto at = why.find("] "); at != std::string::npos) why.erase(0, at + 2);
      if (const auto at = why.find("column "); at != std::string::npos) {
        if (const auto colon = why.find(": ", at); colon != std::string::npos)
          why.erase(0, colon + 2);
      }
      fail(ExitCode::data, place_, ": is not JSON",
           parse_error != nullptr ? runtime::concat(" at byte ", parse_error->byte) : "", ": ",
           why);
    }
    if (!json.is_object()) {
      fail(ExitCode::data, place_, ": is ", article(json), "; expected an object of the form ",
           kForms);
    }
    return json;
  }

  static std::string article(const Json& json) {
    const std::string name = json.type_name();
    if (json.is_null()) return name;
    return (std::string("aeiou").find(name[0]) == std::string::npos ? "a " : "an ") + name;
  }

  const Json& member(const Json& object, const char* name, const std::string& inside) const {
    const auto found = object.find(name);
    if (found == object.end())
      fail(ExitCode::data, place_, ": field '", inside, name, "' is missing");
    return *found;
  }

  std::string string_of(const Json& object, const char* name, const std::string& inside) const {
    const Json& value = member(object, name, inside);
    if (!value.is_string()) {
      fail(ExitCode::data, place_, ": field '", inside, name, "' is ", article(value),
           "; expected a string");
    }
    return value.get<std::string>();
  }

  float weight_of(const Json& object, const std::string& inside) const {
    const Json& value = member(object, "weight", inside);
    const double weight = value.is_number() ? value.get<double>() : -1;
    const auto stored = static_cast<float>(weight);
    constexpr double kMost = std::numeric_limits<float>::max();
    if (!(weight >= 0 && weight <= kMost) || (weight > 0 && stored == 0)) {
      fail(ExitCode::data, place_, ": field '", inside, "weight' is ",
           value.is_number() ? value.dump() : article(value), "; expected 0, or a number from ",
           std::numeric_limits<float>::denorm_min(), " to ", kMost);
    }
    return stored;
  }

  void add_segments(const Json& segments, WeightedText& record) {
    if (!segments.is_array()) {
      fail(ExitCode::data, place_, ": field 'segments' is ", article(segments),
           "; expected an array of {\"text\", \"weight\"}");
    }
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const std::string name = runtime::concat("segments[", i, "]");
      if (!segments[i].is_object()) {
        fail(ExitCode::data, place_, ": field '", name, "' is ", article(segments[i]),
             "; expected an object {\"text\", \"weight\"}");
      }
      record.append(string_of(segments[i], "text", name + "."), weight_of(segments[i], name + "."));
      count_unused(segments[i], {"text", "weight"}, "segments[].");
    }
  }

  void count_unused(const Json& object, const std::set<std::string>& used,
                    const std::string& inside) {
    for (const auto& [name, value] : object.items())
      if (!used.contains(name)) ++unused_[inside + name];
  }

  const std::string place_;
  UnusedFields& unused_;
};

}  // namespace

WeightedText parse_record(const std::string& line, const std::string& place, UnusedFields& unused) {
  return RecordParser(place, unused).parse(line);
}

void WeightedText::append(const std::string& part, float weight) {
  text += part;
  parts.push_back({std::ssize(text), weight});
}

std::vector<float> WeightedText::weights(std::span<const std::int64_t> begins) const {
  std::vector<float> weights;
  weights.reserve(begins.size());
  auto part = parts.begin();
  for (const std::int64_t begin : begins) {
    while (part + 1 < parts.end() && part->end <= begin) ++part;
    weights.push_back(part == parts.end() ? 1.0f : part->weight);
  }
  return weights;
}

RecordReader::RecordReader(const std::filesystem::path& path)
    : file_(runtime::FileHandle::read(path)) {}

std::string RecordReader::place() const {
  return runtime::concat(file_.path().string(), ":", line_number_);
}

bool RecordReader::next_line() {
  std::size_t searched = begin_;
  for (;;) {
    const std::size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos || (at_end_ && begin_ < buffer_.size())) {
      const std::size_t stop = std::min(end, buffer_.size());
      line_.assign(buffer_, begin_, stop - begin_);
      bytes_read_ += static_cast<std::int64_t>(std::min(stop + 1, buffer_.size()) - begin_);
      begin_ = std::min(stop + 1, buffer_.size());
      ++line_number_;
      return true;
    }
    if (at_end_) return false;
    buffer_.erase(0, begin_);
    begin_ = 0;
    searched = buffer_.size();
    if (searched > kMaxLineBytes) {
      fail(ExitCode::data, file_.path().string(), ":", line_number_ + 1, ": is longer than ",
           kMaxLineBytes, " bytes; a line is one record");
    }
    buffer_.resize(searched + kReadBytes);
    const std::size_t got =
        file_.read_some(std::as_writable_bytes(std::span(buffer_).subspan(searched)));
    buffer_.resize(searched + got);
    at_end_ = got == 0;
  }
}

bool RecordReader::next() {
  while (next_line())
    if (line_.find_first_not_of(" \t\r") != std::string::npos) return true;
  return false;
}

}  // namespace longhaul::launch
