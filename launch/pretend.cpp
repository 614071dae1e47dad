#include "launch/pretend.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <set>
#include <sstream>

#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using runtime::fail;

constexpr const char* kForm =
    "expected KEY=VALUE,... of flops (a second), rows, partial, seconds, and slow=FACTOR or "
    "slow=RANK:FACTOR, such as flops=2e9,slow=3:3";

[[noreturn]] void refuse(const std::string& part, const std::string& expected) {
  fail(ExitCode::usage, "'", part, "' of what is to be pretended: ", expected);
}

/// The whole text as a finite number of at least 0, or above it.
double number_of(const std::string& part, std::string_view text, bool above_zero) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  if (!whole || !std::isfinite(value) || value < 0 || (above_zero && value == 0))
    refuse(part, above_zero ? "expected a number above 0" : "expected a number of at least 0");
  return value;
}

void add_slow(const std::string& part, std::string_view value, Pretending& pretending) {
  const auto colon = value.find(':');
  if (colon == std::string_view::npos) {
    pretending.model.slowdown = number_of(part, value, true);
    return;
  }
  int rank = -1;
  const char* const last = value.data() + colon;
  const auto [end, error] = std::from_chars(value.data(), last, rank);
  if (error != std::errc() || end != last || rank < 0)
    refuse(part, "expected slow=RANK:FACTOR, a rank from 0 and how many times it takes as long");
  const double factor = number_of(part, value.substr(colon + 1), true);
  if (!pretending.slowdowns.emplace(rank, factor).second)
    refuse(part, fmt::format("rank {} is there twice", rank));
}

}  // namespace

attention::Pretence Pretending::of_rank(int rank) const {
  attention::Pretence pretence = model;
  if (const auto slow = slowdowns.find(rank); slow != slowdowns.end())
    pretence.slowdown *= slow->second;
  return pretence;
}

void Pretending::check_ranks(int ranks) const {
  if (slowdowns.empty() || slowdowns.rbegin()->first < ranks) return;
  const auto& [rank, factor] = *slowdowns.rbegin();
  refuse(fmt::format("slow={}:{}", rank, factor),
         fmt::format("there is no such rank; expected one of 0 to {}", ranks - 1));
}

std::string Pretending::text() const {
  std::string text = fmt::format("flops={},rows={},partial={},seconds={}", model.flops_per_second,
                                 model.rows, model.partial, model.seconds);
  if (model.slowdown != 1) text += fmt::format(",slow={}", model.slowdown);
  for (const auto& [rank, factor] : slowdowns) text += fmt::format(",slow={}:{}", rank, factor);
  return text;
}

Pretending parse_pretending(const std::string& text) {
  Pretending pretending;
  attention::Pretence& model = pretending.model;
  std::set<std::string> seen;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const auto equals = part.find('=');
    if (equals == std::string::npos) refuse(part, kForm);
    const std::string key = part.substr(0, equals);
    const std::string_view value = std::string_view(part).substr(equals + 1);
    const bool of_rank = key == "slow" && value.find(':') != std::string_view::npos;
    if (!of_rank && !seen.insert(key).second) refuse(part, key + " is there twice");
    if (key == "flops") {
      model.flops_per_second = number_of(part, value, true);
      if (model.flops_per_second < 1) refuse(part, "expected at least 1 a second");
    } else if (key == "rows") {
      model.rows = number_of(part, value, false);
    } else if (key == "partial") {
      model.partial = number_of(part, value, false);
    } else if (key == "seconds") {
      model.seconds = number_of(part, value, false);
    } else if (key == "slow") {
      add_slow(part, value, pretending);
    } else {
      refuse(part, kForm);
    }
  }
  if (text.empty() || text.back() == ',') refuse(text, kForm);
  return pretending;
}

}  // namespace longhaul::launch
