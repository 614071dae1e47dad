#include "models/rope.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "runtime/error.h"

namespace longhaul::models {
namespace {

constexpr const char *kDefault = "default", *kLinear = "linear", *kDynamic = "dynamic",
                     *kLlama3 = "llama3", *kYarn = "yarn", *kLongrope = "longrope";

/// The frequencies of the plain embedding.
std::vector<double> plain(double theta, std::int64_t dims) {
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < dims / 2; ++i)
    frequencies.push_back(
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dims)));
  return frequencies;
}

/// Of llama3, yarn and longrope.
std::optional<std::int64_t> original_length(const RopeBase& base, const RopeScaling& scaling) {
  return scaling.original_max_position_embeddings ? scaling.original_max_position_embeddings
                                                  : base.max_position_embeddings;
}

/// Of longrope: how much longer the model is than what it was trained for first.
double stretch(const RopeBase& base, const RopeScaling& scaling) {
  if (scaling.factor) return *scaling.factor;
  return static_cast<double>(*base.max_position_embeddings) /
         static_cast<double>(*original_length(base, scaling));
}

/// theta stretched to t tokens: theta (s t / L - (s - 1))^(n / (n - 2)).
std::vector<double> dynamic_frequencies(const RopeBase& base, const RopeScaling& scaling) {
  const auto trained = static_cast<double>(*base.max_position_embeddings),
             dims = static_cast<double>(base.dims);
  const double length = std::max(static_cast<double>(base.length), trained),
               factor = *scaling.factor;
  return plain(base.theta * std::pow(factor * length / trained - (factor - 1), dims / (dims - 2)),
               base.dims);
}

/// Long wavelengths are stretched, short ones are not, and between the two it is mixed.
void stretch_llama3(std::vector<double>& frequencies, double original, const RopeScaling& scaling) {
  const double low = *scaling.low_freq_factor, high = *scaling.high_freq_factor;
  for (double& w : frequencies) {
    const double turns = original * w / (2 * std::numbers::pi);
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    w *= kept + (1 - kept) / *scaling.factor;
  }
}

/// Frequencies of less than beta_slow turns over the original length are stretched, of more than
/// beta_fast not, and in between, by their number, it is mixed.
void stretch_yarn(std::vector<double>& frequencies, const RopeBase& base, double original,
                  const RopeScaling& scaling) {
  const auto dims = static_cast<double>(base.dims);
  const auto number = [&](double turns) {
    return dims * std::log(original / (2 * std::numbers::pi * turns)) / (2 * std::log(base.theta));
  };
  double first = number(scaling.beta_fast.value_or(32)),
         last = number(scaling.beta_slow.value_or(1));
  if (scaling.truncate.value_or(true)) first = std::floor(first), last = std::ceil(last);
  first = std::max(first, 0.0), last = std::min(last, dims - 1);
  const double width = first == last ? 0.001 : last - first;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double mix = std::clamp((static_cast<double>(i) - first) / width, 0.0, 1.0);
    frequencies[i] *= mix / *scaling.factor + 1 - mix;
  }
}

double yarn_attention_factor(const RopeScaling& scaling) {
  if (scaling.attention_factor) return *scaling.attention_factor;
  const auto m = [&](double k) {
    return *scaling.factor <= 1 ? 1.0 : 0.1 * k * std::log(*scaling.factor) + 1;
  };
  const double some = scaling.mscale.value_or(0), all = scaling.mscale_all_dim.value_or(0);
  return some != 0 && all != 0 ? m(some) / m(all) : m(1);
}

double longrope_attention_factor(const RopeBase& base, const RopeScaling& scaling) {
  if (scaling.attention_factor) return *scaling.attention_factor;
  const double q = stretch(base, scaling);
  if (q <= 1) return 1;
  return std::sqrt(1 +
                   std::log(q) / std::log(static_cast<double>(*original_length(base, scaling))));
}

/// A key of RopeScaling beside its type.
struct Key {
  const char* name;
  bool given;
  std::vector<const char*> needed, allowed = {};  ///< by types
};
std::vector<Key> keys_of(const RopeScaling& s) {
  return {{"factor", s.factor.has_value(), {kLinear, kDynamic, kLlama3, kYarn}, {kLongrope}},
          {"original_max_position_embeddings",
           s.original_max_position_embeddings.has_value(),
           {},
           {kLlama3, kYarn, kLongrope}},
          {"low_freq_factor", s.low_freq_factor.has_value(), {kLlama3}},
          {"high_freq_factor", s.high_freq_factor.has_value(), {kLlama3}},
          {"beta_fast", s.beta_fast.has_value(), {}, {kYarn}},
          {"beta_slow", s.beta_slow.has_value(), {}, {kYarn}},
          {"mscale", s.mscale.has_value(), {}, {kYarn}},
          {"mscale_all_dim", s.mscale_all_dim.has_value(), {}, {kYarn}},
          {"truncate", s.truncate.has_value(), {}, {kYarn}},
          {"attention_factor", s.attention_factor.has_value(), {}, {kYarn, kLongrope}},
          {"short_factor", !s.short_factor.empty(), {kLongrope}},
          {"long_factor", !s.long_factor.empty(), {kLongrope}}};
}

/// What the type needs and has no use for.
void check_keys(const RopeBase& base, const RopeScaling& scaling, const std::string& type,
                std::vector<RopeProblem>& problems) {
  for (const Key& key : keys_of(scaling)) {
    const bool needed = std::ranges::count(key.needed, type) != 0;
    if (needed && !key.given) problems.push_back({key.name, "", true, ""});
    if (needed || !key.given || std::ranges::count(key.allowed, type) != 0) continue;
    problems.push_back(
        {key.name, "", false,
         scaling.rope_type ? fmt::format("rope_type = \"{}\" has no use for it; leave it out", type)
                           : "it needs a rope_type beside it"});
  }
  if (type == kDynamic && !base.max_position_embeddings)
    problems.push_back({"", "max_position_embeddings", true, ""});
  if (takes_original_length(type) && !original_length(base, scaling))
    problems.push_back({"original_max_position_embeddings", "", true, ""});
  if (type == kLongrope && !scaling.factor && !scaling.attention_factor &&
      !base.max_position_embeddings)
    problems.push_back({"", "max_position_embeddings", true, ""});
}

void check_values(const RopeBase& base, const RopeScaling& s, const std::string& type,
                  std::vector<RopeProblem>& problems) {
  const auto wrong = [&](const char* key, const std::string& expected) {
    problems.push_back({key, "", false, expected});
  };
  if (s.factor && !(*s.factor >= 1)) wrong("factor", "expected at least 1");
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, std::optional<double>>>{
           {"low_freq_factor", s.low_freq_factor},
           {"beta_fast", s.beta_fast},
           {"beta_slow", s.beta_slow},
           {"attention_factor", s.attention_factor}}) {
    if (value && !(*value > 0)) wrong(key, "expected more than 0");
  }
  if (s.low_freq_factor && s.high_freq_factor && !(*s.high_freq_factor > *s.low_freq_factor))
    wrong("high_freq_factor",
          fmt::format("expected more than low_freq_factor = {}", *s.low_freq_factor));
  if (type == kYarn && !(s.beta_fast.value_or(32) > s.beta_slow.value_or(1)))
    wrong(s.beta_fast ? "beta_fast" : "beta_slow",
          fmt::format("expected beta_fast = {} above beta_slow = {}", s.beta_fast.value_or(32),
                      s.beta_slow.value_or(1)));
  // A logarithm of it divides.
  if (type == kLongrope && original_length(base, s).value_or(2) < 2)
    wrong("original_max_position_embeddings", "expected at least 2");
  if (type == kYarn && base.theta <= 1)
    problems.push_back(
        {"", "rope_theta", false, "expected more than 1: yarn divides by its logarithm"});
  if (type == kDynamic && base.dims <= 2)
    wrong("rope_type",
          fmt::format("dynamic stretches more than the {} dims that turn here", base.dims));
  for (const auto& [key, list] :
       {std::pair("short_factor", &s.short_factor), std::pair("long_factor", &s.long_factor)}) {
    if (list->empty()) continue;
    if (std::ssize(*list) != base.dims / 2)
      wrong(key, fmt::format("{} numbers; expected {}, one for each pair of the {} dims that turn",
                             list->size(), base.dims / 2, base.dims));
    if (std::ranges::any_of(*list, [](double value) { return !(value > 0); }))
      wrong(key, "expected numbers above 0");
  }
}

}  // namespace

std::vector<std::string> rope_types() {
  return {kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongrope};
}

std::string rope_type_of(const RopeScaling& scaling) {
  const std::string type = scaling.rope_type.value_or(kDefault);
  return type == "su" ? kLongrope : type;
}

bool takes_original_length(const std::string& rope_type) {
  return rope_type == kLlama3 || rope_type == kYarn || rope_type == kLongrope;
}

bool follows_length(const std::string& rope_type) {
  return rope_type == kDynamic || rope_type == kLongrope;
}

std::vector<RopeProblem> problems_of(const RopeBase& base, const RopeScaling& scaling) {
  std::vector<RopeProblem> problems;
  const std::string type = rope_type_of(scaling);
  if (std::ranges::count(rope_types(), type) == 0) {
    problems.push_back(
        {"rope_type", "", false, fmt::format("expected one of {}", fmt::join(rope_types(), ", "))});
    return problems;
  }
  check_keys(base, scaling, type, problems);
  check_values(base, scaling, type, problems);
  return problems;
}

Rope make_rope(const RopeBase& base, const RopeScaling& scaling) {
  const std::string type = rope_type_of(scaling);
  const std::vector<RopeProblem> problems = problems_of(base, scaling);
  LONGHAUL_CHECK(problems.empty(), "a rope of type ", type, " with problems, the first of ",
                 problems.empty() ? "" : problems[0].key + problems[0].base);
  LONGHAUL_CHECK(!follows_length(type) || base.length > 0, "a rope of type ", type,
                 " without the length of sequences");
  Rope rope{base.dims, plain(base.theta, base.dims), 1};
  const std::optional<std::int64_t> original = original_length(base, scaling);
  if (type == kLinear) {
    for (double& w : rope.frequencies) w /= *scaling.factor;
  } else if (type == kDynamic) {
    rope.frequencies = dynamic_frequencies(base, scaling);
  } else if (type == kLlama3) {
    stretch_llama3(rope.frequencies, static_cast<double>(*original), scaling);
  } else if (type == kYarn) {
    stretch_yarn(rope.frequencies, base, static_cast<double>(*original), scaling);
    rope.attention_factor = yarn_attention_factor(scaling);
  } else if (type == kLongrope) {
    const auto& factors = base.length > *original ? scaling.long_factor : scaling.short_factor;
    for (std::size_t i = 0; i < factors.size(); ++i) rope.frequencies[i] /= factors[i];
    rope.attention_factor = longrope_attention_factor(base, scaling);
  }
  return rope;
}

}  // namespace longhaul::models
