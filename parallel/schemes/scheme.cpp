#include "parallel/schemes/scheme.h"

#include <algorithm>

#include "parallel/schemes/degrees.h"
#include "runtime/error.h"

namespace longhaul::parallel {

namespace {

using runtime::ExitCode;
using runtime::fail;

using enum SchemeOption;

const Scheme* const kSchemes[] = {
#define ADDRESS(name) &name##_scheme,
    LONGHAUL_SCHEMES(ADDRESS)
#undef ADDRESS
};

const Scheme* find_scheme(const std::string& name) {
  const auto found =
      std::ranges::find_if(kSchemes, [&](const Scheme* scheme) { return scheme->name == name; });
  return found != std::end(kSchemes) ? *found : nullptr;
}

bool lists(const Scheme& scheme, SchemeOption option) {
  return std::ranges::find(scheme.reads, option) != scheme.reads.end();
}

/// Whether a scheme around `inner` hands the option on to it. A scheme inside chooses its own
/// degrees.
bool hands_on(const Scheme& inner, SchemeOption option) {
  return inner.inside_usp && option != degrees && lists(inner, option);
}

/// "a, b or c".
std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

std::vector<std::string> names_inside_usp() {
  std::vector<std::string> names;
  for (const Scheme* scheme : kSchemes) {
    if (scheme->inside_usp) names.push_back(scheme->name);
  }
  return names;
}

Slot bound_slot(const std::string& name, const Record& record, const SchemeInputs& inputs, int rank,
                Role role) {
  const int heads = record.side == Side::key ? inputs.shapes.kv_heads : inputs.shapes.heads;
  return {name, record, inputs.layout.rows(rank), heads, role, inputs.layout.runs(rank), 0};
}

/// The value of one of `choices` by name.
template <class T>
T choose(SchemeOption option, const std::string& text,
         const std::vector<std::pair<std::string, T>>& choices) {
  std::vector<std::string> known;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    known.push_back(name);
  }
  fail(ExitCode::config, name(option), " '", text, "' does not exist; expected ", join(known));
}

}  // namespace

std::vector<std::string> scheme_names() {
  std::vector<std::string> names;
  for (const Scheme* scheme : kSchemes) names.push_back(scheme->name);
  return names;
}

const Scheme& scheme_from_name(const std::string& text) {
  const Scheme* scheme = find_scheme(text);
  if (scheme == nullptr)
    fail(ExitCode::config, "unknown scheme '", text, "'; expected ", join(scheme_names()));
  return *scheme;
}

const char* name(SchemeOption option) {
  switch (option) {
    case degrees:
      return "degrees";
    case nesting:
      return "nesting";
    case around:
      return "around";
    case backward:
      return "backward";
  }
  return "unknown";
}

const char* name(Nesting nesting) {
  return nesting == Nesting::heads_inside ? "heads_inside" : "ring_inside";
}

const char* name(BackwardRing backward_ring) {
  return backward_ring == BackwardRing::ring    ? "ring"
         : backward_ring == BackwardRing::burst ? "burst"
                                                : "auto";
}

void set_option(SchemeOptions& options, SchemeOption option, const std::string& text) {
  switch (option) {
    case degrees:
      return set_degrees(options, text);
    case nesting:
      options.nesting = choose<Nesting>(option, text,
                                        {{name(Nesting::heads_inside), Nesting::heads_inside},
                                         {name(Nesting::ring_inside), Nesting::ring_inside}});
      return;
    case around: {
      std::vector<std::pair<std::string, std::string>> names;
      for (const std::string& inner : names_inside_usp()) names.emplace_back(inner, inner);
      options.around = choose(option, text, names);
      return;
    }
    case backward:
      options.backward =
          choose<BackwardRing>(option, text,
                               {{name(BackwardRing::ring), BackwardRing::ring},
                                {name(BackwardRing::burst), BackwardRing::burst},
                                {name(BackwardRing::automatic), BackwardRing::automatic}});
      return;
  }
}

bool is_set(const SchemeOptions& options, SchemeOption option) {
  const SchemeOptions defaults;
  switch (option) {
    case degrees:
      return options.outer != defaults.outer || options.inner != defaults.inner;
    case nesting:
      return options.nesting != defaults.nesting;
    case around:
      return options.around != defaults.around;
    case backward:
      return options.backward != defaults.backward;
  }
  return false;
}

void reset(SchemeOptions& options, SchemeOption option) {
  const SchemeOptions defaults;
  switch (option) {
    case degrees:
      options.outer = defaults.outer;
      options.inner = defaults.inner;
      return;
    case nesting:
      options.nesting = defaults.nesting;
      return;
    case around:
      options.around = defaults.around;
      return;
    case backward:
      options.backward = defaults.backward;
      return;
  }
}

bool is_causal(const attention::HeadMasks& masks) {
  return std::ranges::all_of(masks.groups(),
                             [](const auto& group) { return group.mask.is_causal(); });
}

bool reads(const SchemeOptions& options, SchemeOption option) {
  const Scheme& scheme = scheme_from_name(options.name);
  if (lists(scheme, option)) return true;
  const Scheme* inner = lists(scheme, around) ? find_scheme(options.around) : nullptr;
  return inner != nullptr && hands_on(*inner, option);
}

std::string readers(SchemeOption option) {
  std::vector<std::string> names;
  for (const Scheme* scheme : kSchemes) {
    if (lists(*scheme, option)) names.push_back(scheme->name);
    if (!lists(*scheme, around)) continue;
    for (const Scheme* inner : kSchemes) {
      if (hands_on(*inner, option)) names.push_back(scheme->name + " around " + inner->name);
    }
  }
  return join(names);
}

Combination under_scheme(Combination combination, const std::string& scheme) {
  combination.options = {};
  combination.options.name = scheme;
  return combination;
}

std::string advice(const Combination& refused, const Refusal& refusal) {
  std::vector<std::string> choices;
  for (const Combination& legal : refusal.nearest) {
    const SchemeOptions &had = refused.options, &has = legal.options;
    if (has.name != had.name) {
      choices.push_back("scheme " + has.name);
      continue;
    }
    std::vector<std::string> changes;
    if (legal.ranks != refused.ranks) changes.push_back(runtime::concat(legal.ranks, " ranks"));
    if (legal.layout != refused.layout)
      changes.push_back(runtime::concat("layout ", name(legal.layout)));
    if (has.outer != had.outer || has.inner != had.inner) {
      changes.push_back(is_set(has, degrees)
                            ? runtime::concat("degrees outer=", has.outer, ",inner=", has.inner)
                            : "no degrees");
    }
    if (has.nesting != had.nesting)
      changes.push_back(runtime::concat("nesting ", name(has.nesting)));
    if (has.around != had.around) changes.push_back("around " + has.around);
    if (has.backward != had.backward)
      changes.push_back(runtime::concat("backward ", name(has.backward)));
    std::string choice;
    for (const std::string& change : changes) choice += (choice.empty() ? "" : " and ") + change;
    choices.push_back(choice);
  }
  return join(choices);
}

std::optional<Refusal> refuse(const Combination& combination) {
  const SchemeOptions& options = combination.options;
  const Scheme& scheme = scheme_from_name(options.name);
  const auto refuse_rest = [&](const Combination& rest) {
    return scheme.refuse ? scheme.refuse(rest) : std::nullopt;
  };
  Combination used = combination;  // without the options that the scheme does not read
  std::optional<SchemeOption> unused;
  for (const SchemeOption option : kSchemeOptions) {
    if (reads(options, option) || !is_set(options, option)) continue;
    if (!unused) unused = option;
    reset(used.options, option);
  }
  if (unused) {
    const auto rest = refuse(used);
    return Refusal{runtime::concat(options.name, " has no use for the option ", name(*unused),
                                   ", only ", readers(*unused)),
                   rest ? rest->nearest : std::vector{used}, unused};
  }
  if (lists(scheme, around)) {
    const Scheme* inner = find_scheme(options.around);
    if (inner == nullptr || !inner->inside_usp) {
      Refusal refusal{
          runtime::concat(options.name, " around '", options.around, "' does not exist"),
          {},
          around};
      for (const std::string& known : names_inside_usp()) {
        used.options.around = known;
        if (!refuse_rest(used)) refusal.nearest.push_back(used);
      }
      return refusal;
    }
  }
  return refuse_rest(combination);
}

void check_legal(const Combination& combination) {
  if (const auto refusal = refuse(combination)) {
    fail(ExitCode::config, "scheme ", combination.options.name, ": ", refusal->reason, "; use ",
         advice(combination, *refusal));
  }
}

ProgramGenerator prepare(const SchemeInputs& inputs) {
  const Shapes& shapes = inputs.shapes;
  check_legal({inputs.options, inputs.layout.ranks(), shapes.heads, shapes.kv_heads,
               inputs.layout.kind(), is_causal(inputs.masks)});
  return scheme_from_name(inputs.options.name).prepare(inputs);
}

Schedule build_schedule(const SchemeInputs& inputs) {
  Schedule schedule{inputs.options.name,
                    inputs.direction,
                    inputs.shapes,
                    scheme_from_name(inputs.options.name).channels,
                    {}};
  const ProgramGenerator generate = prepare(inputs);
  for (int rank = 0; rank < inputs.layout.ranks(); ++rank)
    schedule.programs.push_back(generate(rank));
  return schedule;
}

Slot input_slot(const std::string& name, const Record& record, const SchemeInputs& inputs,
                int rank) {
  return bound_slot(name, record, inputs, rank, Role::input);
}
Slot output_slot(const std::string& name, const Record& record, const SchemeInputs& inputs,
                 int rank) {
  return bound_slot(name, record, inputs, rank, Role::output);
}

}  // namespace longhaul::parallel
