#include "launch/old_schemes.h"

#include <charconv>
#include <sstream>

#include "parallel/policy.h"
#include "parallel/schemes/scheme.h"
#include "runtime/config/toml_document.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using parallel::Expression;

struct OldDegrees {
  std::int64_t outer = 0, inner = 0;  // 0: not given
};

/// nullopt for a text that is not understood.
std::optional<OldDegrees> read_degrees(const std::string& text) {
  OldDegrees degrees;
  if (text == "auto") return degrees;
  for (const std::string& part : parallel::split_outside_parentheses(text)) {
    const std::size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    std::int64_t* const degree = key == "outer"   ? &degrees.outer
                                 : key == "inner" ? &degrees.inner
                                                  : nullptr;
    if (degree == nullptr || *degree != 0 || equals == std::string::npos) return {};
    const char *begin = part.data() + equals + 1, *end = part.data() + part.size();
    const auto [parsed, error] = std::from_chars(begin, end, *degree);
    if (error != std::errc() || parsed != end || *degree < 1) return {};
  }
  return degrees;
}

Expression double_ring(const OldDegrees& degrees, const OldSchemeOptions& options) {
  Expression scheme("double_ring");
  if (degrees.outer > 0) scheme = scheme.with("outer", degrees.outer);
  if (degrees.inner > 0) scheme = scheme.with("inner", degrees.inner);
  if (options.backward) scheme = scheme.with("backward", *options.backward);
  return scheme;
}

std::optional<Expression> usp(const OldDegrees& degrees, const OldSchemeOptions& options,
                              std::optional<std::int64_t> ranks) {
  Expression scheme("usp");
  const bool ring_inside = options.nesting == "ring_inside";
  std::int64_t heads = ring_inside ? degrees.outer : degrees.inner;
  const std::int64_t rings = ring_inside ? degrees.inner : degrees.outer;
  if (heads == 0 && rings > 0) {  // the other degree says it once the ranks are known
    if (!ranks || *ranks % rings != 0) return {};
    heads = *ranks / rings;
  }
  if (heads > 0) scheme = scheme.with("heads", heads);
  if (options.nesting) scheme = scheme.with("nesting", *options.nesting);
  if (options.around == "double_ring") {
    scheme = scheme.with("around", double_ring({}, options));  // it chose its own degrees
  } else if (options.around) {
    scheme = scheme.with("around", *options.around);
  }
  return scheme;
}

}  // namespace

std::optional<std::string>& OldSchemeOptions::of(std::string_view name) {
  return name == "degrees"   ? degrees
         : name == "nesting" ? nesting
         : name == "around"  ? around
                             : backward;
}

std::optional<std::string> replace_old_options(const std::string& scheme,
                                               const OldSchemeOptions& options,
                                               std::optional<std::int64_t> ranks) {
  if (scheme != "double_ring" && scheme != "usp") return scheme;
  const auto degrees = read_degrees(options.degrees.value_or("auto"));
  if (!degrees) return {};
  const std::optional<Expression> replaced =
      scheme == "usp" ? usp(*degrees, options, ranks) : double_ring(*degrees, options);
  if (!replaced) return {};
  try {
    return parallel::canonical(*replaced).text();
  } catch (const runtime::Error&) {
    return {};
  }
}

std::optional<std::string> replace_old_options_in_switch(const std::string& text,
                                                         const OldSchemeOptions& options,
                                                         std::optional<std::int64_t> ranks) {
  std::string all;
  for (const std::string& part : parallel::split_outside_parentheses(text)) {
    const std::size_t colon = part.find(':');
    std::string replaced = part;
    if (colon != std::string::npos) {
      const auto scheme = replace_old_options(part.substr(colon + 1), options, ranks);
      if (!scheme) return {};
      replaced = part.substr(0, colon + 1) + *scheme;
    }
    all += (all.empty() ? "" : ",") + replaced;
  }
  return all;
}

std::string translate_config(const std::string& toml) {
  const std::string prefix = "context_parallel_";
  const auto parsed = runtime::parse_toml(toml);
  const auto* sections = std::get_if<std::vector<runtime::TomlSection>>(&parsed);
  if (sections == nullptr) return toml;
  OldSchemeOptions options;
  std::string scheme = "ring", change = "none";
  std::optional<std::int64_t> ranks;
  for (const runtime::TomlSection& section : *sections) {
    if (section.name != "parallelism") continue;
    for (const runtime::TomlEntry& entry : section.entries) {
      const auto* text = std::get_if<std::string>(&entry.value.value);
      const auto* integer = std::get_if<std::int64_t>(&entry.value.value);
      if (entry.key == prefix + "degree" && integer != nullptr && *integer > 0) ranks = *integer;
      if (text == nullptr) continue;
      if (entry.key == prefix + "scheme") scheme = *text;
      if (entry.key == prefix + "switch") change = *text;
      for (const char* name : OldSchemeOptions::kNames) {
        if (entry.key == prefix + name) options.of(name) = *text;
      }
    }
  }
  const auto new_scheme = replace_old_options(scheme, options, ranks),
             new_change = replace_old_options_in_switch(change, options, ranks);
  if (!options.any() || !new_scheme || !new_change) return toml;

  std::istringstream lines(toml);
  std::string translated, section;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('[')) section = line;
    const std::string key = section == "[parallelism]" ? line.substr(0, line.find(' ')) : "";
    bool dropped = false;
    for (const char* name : OldSchemeOptions::kNames) dropped = dropped || key == prefix + name;
    if (dropped) continue;
    if (key == prefix + "scheme") line = key + " = " + runtime::quote_toml(*new_scheme);
    if (key == prefix + "switch") line = key + " = " + runtime::quote_toml(*new_change);
    translated += line + "\n";
  }
  return translated;
}

}  // namespace longhaul::launch
