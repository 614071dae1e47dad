#include "launch/schemes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>

#include "attention/named_masks.h"
#include "runtime/error.h"

namespace longhaul::launch {

using parallel::Combination;
using parallel::SchemeOption;
using parallel::SchemeOptions;

namespace {

constexpr const char* kSchemeKey = "parallelism.context_parallel_scheme";
constexpr const char* kSwitchKey = "parallelism.context_parallel_switch";

std::string key_of(SchemeOption option) {
  return std::string("parallelism.context_parallel_") + parallel::name(option);
}

const std::string& text_of(const ParallelismConfig& p, SchemeOption option) {
  switch (option) {
    case SchemeOption::degrees:
      return p.context_parallel_degrees;
    case SchemeOption::nesting:
      return p.context_parallel_nesting;
    case SchemeOption::around:
      return p.context_parallel_around;
    case SchemeOption::backward:
      return p.context_parallel_backward;
  }
  return p.context_parallel_scheme;  // not reached
}

/// Part of context_parallel_switch.
struct SwitchPart {
  std::int64_t step = 0;
  std::string scheme;
  std::string wrong;  ///< empty for nothing
};

/// Steps above 1, in order, and at most `steps`.
std::vector<SwitchPart> read_switch(const std::string& text, std::int64_t steps) {
  std::vector<SwitchPart> parts;
  if (text == "none") return parts;
  std::int64_t last = 1;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    at = end + 1;
    const std::size_t colon = std::min(part.find(':'), part.size());
    SwitchPart read;
    const auto [parsed, error] = std::from_chars(part.data(), part.data() + colon, read.step);
    if (colon == part.size() || error != std::errc() || parsed != part.data() + colon) {
      read.wrong = fmt::format(
          "'{}' is no STEP:SCHEME; expected, for example, \"5:burst,10:group_cast\"", part);
    } else if (read.step <= last || read.step > steps) {
      read.wrong = fmt::format("'{}': expected a step above {} and up to training.steps = {}", part,
                               last, steps);
    } else {
      last = read.step;
      read.scheme = part.substr(colon + 1);
      if (std::ranges::count(parallel::scheme_names(), read.scheme) == 0) {
        read.wrong = fmt::format("'{}': unknown scheme; expected one of {}", part,
                                 fmt::join(parallel::scheme_names(), ", "));
      }
    }
    parts.push_back(std::move(read));
  }
  return parts;
}

/// The scheme with those options of the configuration that it has a use for.
SchemeOptions options_for(const ParallelismConfig& p, const std::string& scheme,
                          const std::vector<SchemeOption>& usable) {
  SchemeOptions options;
  options.name = scheme;
  for (const SchemeOption option : parallel::kSchemeOptions) {
    if (parallel::reads(options, option) && std::ranges::count(usable, option) != 0)
      parallel::set_option(options, option, text_of(p, option));
  }
  return options;
}

/// A scheme of the run and the key that asks for it.
struct Use {
  SchemeOptions scheme;
  const char* key;
  std::int64_t step = 1;
};

/// Options whose texts say something; adds a problem for the others.
std::vector<SchemeOption> check_option_texts(TrainDraft& draft) {
  std::vector<SchemeOption> usable;
  for (const SchemeOption option : parallel::kSchemeOptions) {
    const std::string& text = text_of(draft.config.parallelism, option);
    if (!draft.good({key_of(option).c_str()})) continue;
    try {
      SchemeOptions scratch;
      parallel::set_option(scratch, option, text);
      usable.push_back(option);
    } catch (const runtime::Error& error) {
      draft.key_problem(key_of(option), runtime::quote_toml(text), error.what());
    }
  }
  return usable;
}

/// The schemes that are asked for by names that exist; adds a problem for each other part of
/// context_parallel_switch.
std::vector<Use> check_switch(TrainDraft& draft, const std::vector<SchemeOption>& usable) {
  const ParallelismConfig& p = draft.config.parallelism;
  std::vector<Use> uses;
  if (draft.good({kSchemeKey}))
    uses.push_back({options_for(p, p.context_parallel_scheme, usable), kSchemeKey});
  if (!draft.good({kSwitchKey})) return uses;
  const std::int64_t steps = draft.good({"training.steps"})
                                 ? draft.config.training.steps
                                 : std::numeric_limits<std::int64_t>::max();
  for (const SwitchPart& part : read_switch(p.context_parallel_switch, steps)) {
    if (part.wrong.empty()) {
      uses.push_back({options_for(p, part.scheme, usable), kSwitchKey, part.step});
    } else {
      draft.key_problem(kSwitchKey, runtime::quote_toml(p.context_parallel_switch), part.wrong);
    }
  }
  return uses;
}

/// Options that are given though no scheme of the run reads them.
void check_unused(TrainDraft& draft, const std::vector<Use>& uses,
                  const std::vector<SchemeOption>& usable) {
  if (!draft.good({kSchemeKey, kSwitchKey})) return;  // the scheme that is meant may read them
  for (const SchemeOption option : usable) {
    const std::string& text = text_of(draft.config.parallelism, option);
    SchemeOptions given;
    parallel::set_option(given, option, text);
    if (!parallel::is_set(given, option) || std::ranges::any_of(uses, [&](const Use& use) {
          return parallel::reads(use.scheme, option);
        })) {
      continue;
    }
    draft.key_problem(key_of(option), runtime::quote_toml(text),
                      "no scheme of this run has a use for it; remove it, or use scheme " +
                          parallel::readers(option));
  }
}

/// What is known of the run; the rest such that it suits every scheme.
Combination known_combination(const TrainDraft& draft, const SchemeOptions& scheme) {
  const TrainConfig& config = draft.config;
  const auto ranks = static_cast<int>(config.parallelism.context_parallel_degree);
  Combination known{.options = scheme};
  if (draft.good({"parallelism.context_parallel_degree"}) && ranks > 0) {
    known.ranks = ranks;
  } else {
    known.options.outer = known.options.inner = 0;
  }
  known.heads = known.kv_heads = known.ranks;
  if (draft.good({"model.num_attention_heads", "model.num_key_value_heads"})) {
    known.heads = static_cast<int>(config.model.num_attention_heads);
    known.kv_heads = static_cast<int>(config.model.num_key_value_heads);
  }
  if (draft.good({"parallelism.context_parallel_layout"}))
    known.layout = parallel::layout_from_name(config.parallelism.context_parallel_layout);
  if (draft.good({"data.mask"})) known.causal = attention::mask_rule(config.data.mask).causal;
  return known;
}

void check_uses(TrainDraft& draft, const std::vector<Use>& uses) {
  const ParallelismConfig& p = draft.config.parallelism;
  std::set<std::pair<std::string, std::string>> told;  // key, reason: schemes may come back
  for (const Use& use : uses) {
    const Combination known = known_combination(draft, use.scheme);
    const auto refusal = parallel::refuse(known);
    if (!refusal) continue;
    const std::string key = refusal->option ? key_of(*refusal->option) : use.key;
    const std::string& value = refusal->option         ? text_of(p, *refusal->option)
                               : use.key == kSwitchKey ? p.context_parallel_switch
                                                       : p.context_parallel_scheme;
    if (!told.emplace(key, refusal->reason).second) continue;
    const std::string who = use.step > 1
                                ? fmt::format("{} from step {}: ", use.scheme.name, use.step)
                            : refusal->option ? use.scheme.name + ": "
                                              : "";
    draft.key_problem(key, runtime::quote_toml(value),
                      who + refusal->reason + "; use " + parallel::advice(known, *refusal));
  }
}

}  // namespace

SchemeOptions scheme_options(const std::string& name, const std::string& degrees,
                             const std::string& nesting, const std::string& around,
                             const std::string& backward) {
  SchemeOptions options;
  options.name = parallel::scheme_from_name(name).name;
  parallel::set_option(options, SchemeOption::degrees, degrees);
  parallel::set_option(options, SchemeOption::nesting, nesting);
  parallel::set_option(options, SchemeOption::around, around);
  parallel::set_option(options, SchemeOption::backward, backward);
  return options;
}

std::vector<SchemeChange> scheme_changes(const TrainConfig& config) {
  const ParallelismConfig& p = config.parallelism;
  const std::vector<SchemeOption> all(std::begin(parallel::kSchemeOptions),
                                      std::end(parallel::kSchemeOptions));
  std::vector<SchemeChange> changes{{1, options_for(p, p.context_parallel_scheme, all)}};
  for (const SwitchPart& part : read_switch(p.context_parallel_switch, config.training.steps)) {
    LONGHAUL_CHECK(part.wrong.empty(), part.wrong);
    changes.push_back({part.step, options_for(p, part.scheme, all)});
  }
  return changes;
}

void check_schemes(TrainDraft& draft) {
  const std::vector<SchemeOption> usable = check_option_texts(draft);
  const std::vector<Use> uses = check_switch(draft, usable);
  check_unused(draft, uses, usable);
  check_uses(draft, uses);
}

}  // namespace longhaul::launch
