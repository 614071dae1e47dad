#include "launch/schemes.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>

#include "attention/named_masks.h"
#include "launch/attention_axis.h"
#include "launch/config.h"
#include "launch/model.h"
#include "launch/old_schemes.h"
#include "parallel/policy.h"
#include "runtime/error.h"

namespace longhaul::launch {

using parallel::Combination;
using parallel::Expression;

namespace {

const std::string kPrefix = "parallelism.context_parallel_";
constexpr const char* kSchemeKey = "parallelism.context_parallel_scheme";
constexpr const char* kLinearKey = "parallelism.context_parallel_linear_scheme";
constexpr const char* kSwitchKey = "parallelism.context_parallel_switch";

/// Of a layer of softmax attention; 1 where the model has none.
struct SoftmaxHeads {
  int heads = 1, kv_heads = 1;
  std::int64_t dim = 1;
};
SoftmaxHeads softmax_heads(const ModelConfig& model) {
  const std::int64_t heads = model.num_attention_heads.value_or(1);
  return {static_cast<int>(heads), static_cast<int>(model.num_key_value_heads.value_or(heads)),
          model.head_dim.value_or(1)};
}

bool is_policy(const std::string& text) {
  return std::ranges::count(parallel::policy_names(), text) != 0;
}

/// The scheme of a text: an expression, or what a policy chooses for this run. Throws
/// Error(config).
Expression scheme_of(const TrainConfig& config, const std::string& text) {
  const SoftmaxHeads heads = softmax_heads(config.model);
  const parallel::Shapes shapes{heads.heads, heads.kv_heads, heads.dim, heads.dim,
                                config.training.dtype};
  const runtime::DType wire = config.parallelism.context_parallel_wire_dtype;
  return parallel::choose_scheme(
      text, shapes, wire == runtime::DType::float32 ? std::nullopt : std::optional(wire));
}

/// The first of the model's calls that is of a recurrence, or is not.
std::optional<models::AttentionCall> call_of(const TrainConfig& config, bool linear) {
  const models::Model model = make_model(config, 1);
  for (const models::AttentionCall& call : model.attention_calls()) {
    if (call.shapes.linear.has_value() == linear) return call;
  }
  return std::nullopt;
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
  for (std::string part : parallel::split_outside_parentheses(text)) {
    part.erase(0, std::min(part.find_first_not_of(' '), part.size()));
    const std::size_t colon = std::min(part.find(':'), part.size());
    SwitchPart read;
    const auto [parsed, error] = std::from_chars(part.data(), part.data() + colon, read.step);
    if (error == std::errc::result_out_of_range && parsed == part.data() + colon) {
      read.wrong = fmt::format("'{}': the step {}", part, runtime::kBeyond64Bits);
    } else if (colon == part.size() || error != std::errc() || parsed != part.data() + colon) {
      read.wrong = fmt::format(
          "'{}' is no STEP:SCHEME; expected, for example, \"5:burst,10:group_cast\"", part);
    } else if (read.step <= last || read.step > steps) {
      read.wrong = fmt::format("'{}': expected a step above {} and up to training.steps = {}", part,
                               last, steps);
    } else {
      last = read.step;
      read.scheme = part.substr(colon + 1);
    }
    parts.push_back(std::move(read));
  }
  return parts;
}

/// A scheme of the run and the key that asks for it.
struct Use {
  Expression scheme;
  const char* key;
  std::int64_t step = 1;
};

/// The schemes that are asked for; adds a problem for each that is none.
std::vector<Use> check_expressions(TrainDraft& draft) {
  ParallelismConfig& p = draft.config.parallelism;
  std::vector<Use> uses;
  // The text in canonical form; a policy stays what it is.
  const auto take = [&](const std::string& text, const char* key, std::int64_t step) {
    uses.push_back({scheme_of(draft.config, text), key, step});
    return is_policy(text) ? text : uses.back().scheme.text();
  };
  if (draft.good({kSchemeKey})) {
    std::string& text = p.context_parallel_scheme;
    try {
      text = take(text, kSchemeKey, 1);
    } catch (const runtime::Error& error) {
      draft.key_problem(kSchemeKey, runtime::quote_toml(text), error.what());
    }
  }
  if (!draft.good({kSwitchKey})) return uses;
  const std::int64_t steps = draft.good({"training.steps"})
                                 ? draft.config.training.steps
                                 : std::numeric_limits<std::int64_t>::max();
  const std::string given = p.context_parallel_switch;
  std::string all;
  for (SwitchPart& part : read_switch(given, steps)) {
    try {
      if (part.wrong.empty()) {
        const std::string text = take(part.scheme, kSwitchKey, part.step);
        all += fmt::format("{}{}:{}", all.empty() ? "" : ",", part.step, text);
      }
    } catch (const runtime::Error& error) {
      part.wrong = fmt::format("step {}: {}", part.step, error.what());
    }
    if (!part.wrong.empty()) draft.key_problem(kSwitchKey, runtime::quote_toml(given), part.wrong);
  }
  if (draft.good({kSwitchKey}) && !all.empty()) p.context_parallel_switch = all;
  return uses;
}

/// Keys that expressions have replaced: says which.
void check_old_keys(TrainDraft& draft) {
  const ParallelismConfig& p = draft.config.parallelism;
  OldSchemeOptions options;
  for (const char* name : OldSchemeOptions::kNames) {
    const runtime::TomlValue* value = draft.given(kPrefix + name);
    const auto* text = value != nullptr ? std::get_if<std::string>(&value->value) : nullptr;
    if (value != nullptr) options.of(name) = text != nullptr ? *text : "";
  }
  if (!options.any()) return;
  const auto ranks =
      p.context_parallel_degree > 0 ? std::optional(p.context_parallel_degree) : std::nullopt;
  const auto scheme = replace_old_options(p.context_parallel_scheme, options, ranks),
             change = replace_old_options_in_switch(p.context_parallel_switch, options, ranks);
  std::string message;
  const auto write = [&](const char* key, const std::string& text) {
    message +=
        fmt::format("{}{} = {}", message.empty() ? "" : " and ", key, runtime::quote_toml(text));
  };
  if (!scheme || !change) {
    message =
        "write, for example, context_parallel_scheme = \"double_ring(outer=2, inner=4)\" or "
        "\"usp(heads=4, around=double_ring(backward=burst))\"";
  } else {
    if (*scheme != p.context_parallel_scheme) write("context_parallel_scheme", *scheme);
    if (*change != p.context_parallel_switch) write("context_parallel_switch", *change);
    message = message.empty() ? "remove it, the schemes of this run say everything"
                              : "write " + message + " instead";
  }
  for (const char* name : OldSchemeOptions::kNames) {
    const runtime::TomlValue* value = draft.given(kPrefix + name);
    if (value == nullptr) continue;
    draft.key_problem(kPrefix + name, runtime::describe_value(*value),
                      "a scheme is an expression now; " + message);
  }
}

/// What is known of the run; the rest such that it suits every scheme.
Combination known_combination(const TrainDraft& draft, const Expression& scheme) {
  const TrainConfig& config = draft.config;
  Combination known{.scheme = scheme};
  if (draft.good({"parallelism.context_parallel_degree",
                  "parallelism.data_parallel_replicate_degree", "attention_servers.mode",
                  "attention_servers.count"}) &&
      config.parallelism.context_parallel_degree > 0) {
    known.ranks = attention_axis(config, scheme).ranks();
  } else {
    known.scheme = scheme.name;  // degrees are judged once the ranks are known
  }
  known.heads = known.kv_heads = known.ranks;
  if (draft.good({"model.num_attention_heads", "model.num_key_value_heads"}) &&
      config.model.num_attention_heads) {
    known.heads = softmax_heads(config.model).heads;
    known.kv_heads = softmax_heads(config.model).kv_heads;
  }
  if (draft.good({"parallelism.context_parallel_layout"}))
    known.layout = parallel::layout_from_name(config.parallelism.context_parallel_layout);
  // Of every layer: sliding ones see part of a mask that is causal.
  if (draft.good({"data.mask"})) {
    const attention::MaskRule& rule = attention::mask_rule(config.data.mask);
    known.causal = rule.causal;
    known.whole_past = rule.sees_whole_past() && !config.data.window && !slides(draft);
  }
  return known;
}

void check_uses(TrainDraft& draft, const std::vector<Use>& uses) {
  const ParallelismConfig& p = draft.config.parallelism;
  std::set<std::pair<std::string, std::string>> told;  // key, reason: schemes may come back
  for (const Use& use : uses) {
    const Combination known = known_combination(draft, use.scheme);
    const auto refusal = parallel::refuse(known);
    if (!refusal || !told.emplace(use.key, refusal->reason).second) continue;
    const std::string who =
        use.step > 1 ? fmt::format("{} from step {}: ", use.scheme.text(), use.step) : "";
    draft.key_problem(use.key,
                      runtime::quote_toml(use.key == kSwitchKey ? p.context_parallel_switch
                                                                : p.context_parallel_scheme),
                      who + refusal->reason + "; use " + parallel::advice(known, *refusal));
  }
}

/// All schemes of the run have one axis: who holds what does not change.
void check_axes(TrainDraft& draft, const std::vector<Use>& uses) {
  const ParallelismConfig& p = draft.config.parallelism;
  if (!draft.good(
          {kSwitchKey, "parallelism.data_parallel_replicate_degree", "attention_servers.mode"}))
    return;
  if (p.data_parallel_replicate_degree == 1 && dedicated_servers(draft.config) == 0) return;
  const auto other = std::ranges::find_if(uses, [&](const Use& use) {
    return spans_data(use.scheme) != spans_data(uses.front().scheme);
  });
  if (other == uses.end()) return;
  const auto axis = [](const Use& use) {
    return fmt::format("{} attends over {}", use.scheme.name,
                       spans_data(use.scheme) ? "data x context" : "context");
  };
  draft.key_problem(kSwitchKey, runtime::quote_toml(p.context_parallel_switch),
                    fmt::format("step {}: {}, and {}: who holds which rows does not change within "
                                "a run; stop it, and go on from its checkpoint with the other "
                                "scheme",
                                other->step, axis(uses.front()), axis(*other)));
}

/// Of a call of the model's recurrences, as far as it is known.
Combination linear_combination(const TrainConfig& config, const parallel::Shapes& shapes,
                               const Expression& scheme) {
  const ParallelismConfig& p = config.parallelism;
  return {scheme,
          attention_axis(config).ranks(),
          shapes.heads,
          shapes.kv_heads,
          parallel::layout_from_name(p.context_parallel_layout),
          shapes.linear->recurrence.causal,
          parallel::Family::linear};
}

/// The expression, and where the model has linear layers that they can follow mask and layout.
void check_linear(TrainDraft& draft) {
  if (!draft.good({kLinearKey})) return;
  TrainConfig& config = draft.config;
  std::string& text = config.parallelism.context_parallel_linear_scheme;
  try {
    if (!is_policy(text))
      text =
          parallel::parse_scheme(text, parallel::policy_names(), parallel::Family::linear).text();
  } catch (const runtime::Error& error) {
    draft.key_problem(kLinearKey, runtime::quote_toml(text), error.what());
  }
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    const std::string path = key.path();
    if (path.starts_with("model.") && !draft.good({path.c_str()})) return;  // no model can be made
  }
  const auto call = call_of(config, true);
  if (!call) {
    // A resolved configuration says the default.
    if (draft.is_set(kLinearKey) && !is_policy(text))
      draft.key_problem(
          kLinearKey, runtime::quote_toml(text),
          fmt::format("no layer of this {} is linear; leave it out", config.model.architecture));
    return;
  }
  if (draft.good({"device.kind"}) && config.device.kind == "cuda") {
    draft.key_problem("device.kind", runtime::quote_toml(config.device.kind),
                      "linear layers run on CPUs only, so far; expected cpu");
  }
  if (draft.good({"debug.pretend"}) && config.debug.pretend) {
    draft.key_problem("debug.pretend", runtime::quote_toml(*config.debug.pretend),
                      "the time of linear layers is not modelled; use a model without any");
  }
  const std::string& mask = config.data.mask;
  const std::string rule = draft.good({"data.mask"}) ? attention::mask_rule(mask).name : "causal";
  if (rule != "causal" && rule != "causal_document") {
    draft.key_problem("data.mask", runtime::quote_toml(mask),
                      "a linear layer's state holds all earlier tokens of a document; expected "
                      "causal or causal_document");
  } else if (config.data.window) {
    draft.key_problem(
        "data.window", fmt::format("{}", *config.data.window),
        "a linear layer's state holds all earlier tokens of a document; leave it out");
  }
  if (!draft.good({kLinearKey, "parallelism.context_parallel_layout",
                   "parallelism.context_parallel_degree"}))
    return;
  const Expression scheme =
      is_policy(text) ? "lasp2" : parallel::parse_scheme(text, {}, parallel::Family::linear);
  const Combination asked = linear_combination(config, call->shapes, scheme);
  if (const auto refusal = parallel::refuse(asked)) {
    const bool layout = asked.layout == parallel::LayoutKind::striped;
    draft.key_problem(layout ? "parallelism.context_parallel_layout" : kLinearKey,
                      runtime::quote_toml(layout ? parallel::name(asked.layout) : text),
                      refusal->reason + "; use " + parallel::advice(asked, *refusal));
  }
}

}  // namespace

std::optional<parallel::LinearChoice> linear_choice(const TrainConfig& config) {
  const auto call = call_of(config, true);
  if (!call) return std::nullopt;
  const ParallelismConfig& p = config.parallelism;
  LONGHAUL_CHECK(p.context_parallel_degree >= 1, "the context degree is not known");
  const AttentionAxis axis = attention_axis(config);
  parallel::LinearChoice choice = parallel::choose_linear_scheme(
      p.context_parallel_linear_scheme, call->shapes,
      parallel::layout_from_name(p.context_parallel_layout), axis.homes,
      config.training.seq_len * axis.sequences / axis.homes);
  choice.scheme = parallel::resolved(linear_combination(config, call->shapes, choice.scheme));
  return choice;
}

bool spans_data(const Expression& scheme) {
  return parallel::scheme_from_name(scheme.name).spans_data;
}

std::vector<SchemeChange> scheme_changes(const TrainConfig& config) {
  const ParallelismConfig& p = config.parallelism;
  std::vector<SchemeChange> changes{{1, scheme_of(config, p.context_parallel_scheme)}};
  for (const SwitchPart& part : read_switch(p.context_parallel_switch, config.training.steps)) {
    LONGHAUL_CHECK(part.wrong.empty(), part.wrong);
    changes.push_back({part.step, scheme_of(config, part.scheme)});
  }
  return changes;
}

std::vector<parallel::Expression> schemes_of(const TrainConfig& config,
                                             const models::AttentionCall& call) {
  if (call.shapes.linear) return {linear_choice(config)->scheme};
  std::vector<parallel::Expression> schemes;
  for (const SchemeChange& change : scheme_changes(config)) schemes.push_back(change.scheme);
  return schemes;
}

std::vector<SchemeChange> resolved_schemes(const TrainConfig& config) {
  std::vector<SchemeChange> changes = scheme_changes(config);
  const ParallelismConfig& p = config.parallelism;
  if (p.context_parallel_degree < 1) return changes;
  const SoftmaxHeads heads = softmax_heads(config.model);
  const int ranks = attention_axis(config).ranks();
  for (SchemeChange& change : changes) {
    change.scheme = parallel::resolved({change.scheme, ranks, heads.heads, heads.kv_heads,
                                        parallel::layout_from_name(p.context_parallel_layout),
                                        attention::mask_rule(config.data.mask).causal});
  }
  return changes;
}

std::string schemes_text(const TrainConfig& config) {
  const ParallelismConfig& p = config.parallelism;
  std::vector<std::string> asked{p.context_parallel_scheme};
  for (const SwitchPart& part : read_switch(p.context_parallel_switch, config.training.steps))
    asked.push_back(part.scheme);
  std::string text;
  std::size_t i = 0;
  for (const SchemeChange& change : resolved_schemes(config)) {
    text += i == 0 ? "" : fmt::format(", from step {} ", change.step);
    text += change.scheme.text();
    if (is_policy(asked[i])) text += fmt::format(" (chosen by {})", asked[i]);
    ++i;
  }
  return call_of(config, false) ? text : "none";
}

std::optional<std::string> linear_text(const TrainConfig& config) {
  if (!call_of(config, true)) return std::nullopt;
  const ParallelismConfig& p = config.parallelism;
  if (p.context_parallel_degree < 1) return p.context_parallel_linear_scheme;
  const parallel::LinearChoice choice = *linear_choice(config);
  if (choice.reason.empty()) return choice.scheme.text();
  return fmt::format("{} (chosen by {}: {})", choice.scheme.text(),
                     p.context_parallel_linear_scheme, choice.reason);
}

void check_schemes(TrainDraft& draft) {
  check_old_keys(draft);
  const std::vector<Use> uses = check_expressions(draft);
  check_axes(draft, uses);
  check_uses(draft, uses);
  check_linear(draft);
}

}  // namespace longhaul::launch
