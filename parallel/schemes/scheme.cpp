#include "parallel/schemes/scheme.h"

#include <algorithm>

#include "parallel/schemes/degrees.h"
#include "runtime/error.h"

namespace longhaul::parallel {

// One line here and one in the table for each scheme.
ProgramGenerator prepare_all_gather(const SchemeInputs& inputs);
ProgramGenerator prepare_balanced_ring(const SchemeInputs& inputs);
ProgramGenerator prepare_group_cast(const SchemeInputs& inputs);
ProgramGenerator prepare_ring(const SchemeInputs& inputs);
ProgramGenerator prepare_ring_self_attention(const SchemeInputs& inputs);
ProgramGenerator prepare_ulysses(const SchemeInputs& inputs);
ProgramGenerator prepare_usp(const SchemeInputs& inputs);
std::optional<Refusal> refuse_balanced_ring(const Combination& combination);
std::optional<Refusal> refuse_double_ring(const Combination& combination);
std::optional<Refusal> refuse_ulysses(const Combination& combination);
std::optional<Refusal> refuse_usp(const Combination& combination);

namespace {

using runtime::ExitCode;
using runtime::fail;

const char* const kHeadRule =
    "every mask and layout; H a multiple of the ranks, H_kv and the ranks one of the other";

using enum SchemeOption;

const Scheme kSchemes[] = {
    {.name = "ring", .prepare = prepare_ring, .inside_usp = true},
    {.name = "burst", .prepare = prepare_ring, .inside_usp = true},
    {.name = "auto",
     .prepare = prepare_ring,
     .legality = "every mask, layout and number of ranks: ring or burst"},
    {.name = "double_ring",
     .channels = 2,
     .prepare = prepare_ring,
     .reads = {degrees, backward},
     .inside_usp = true,
     .refuse = refuse_double_ring,
     .legality = "every mask, layout and number of ranks; outer x inner degrees make up the ranks"},
    {.name = "ring_self_attention", .prepare = prepare_ring_self_attention},
    {.name = "balanced_ring",
     .prepare = prepare_balanced_ring,
     .refuse = refuse_balanced_ring,
     .legality = "layout contiguous; masks in which no query sees a later key, as causal and "
                 "documents, and slices that are so"},
    {.name = "all_gather", .prepare = prepare_all_gather},
    {.name = "ulysses",
     .prepare = prepare_ulysses,
     .refuse = refuse_ulysses,
     .legality = kHeadRule},
    {.name = "usp",
     .channels = 2,
     .prepare = prepare_usp,
     .reads = {degrees, nesting, around},
     .refuse = refuse_usp,
     .legality = "every mask and layout; as ulysses for the degree that shares heads"},
    {.name = "group_cast", .prepare = prepare_group_cast},
};

const Scheme* find_scheme(const std::string& name) {
  const auto found = std::ranges::find(kSchemes, name, &Scheme::name);
  return found != std::end(kSchemes) ? found : nullptr;
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
  for (const Scheme& scheme : kSchemes) {
    if (scheme.inside_usp) names.push_back(scheme.name);
  }
  return names;
}

Slot bound_slot(const std::string& name, SlotKind kind, const SchemeInputs& inputs, int rank,
                Role role) {
  const int heads = is_key_side(kind) ? inputs.shapes.kv_heads : inputs.shapes.heads;
  return {name, kind, inputs.layout.rows(rank), heads, role, inputs.layout.runs(rank), 0};
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
  for (const Scheme& scheme : kSchemes) names.push_back(scheme.name);
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

void set_option(SchemeOptions& options, SchemeOption option, const std::string& text) {
  switch (option) {
    case degrees:
      return set_degrees(options, text);
    case nesting:
      options.nesting = choose<Nesting>(
          option, text,
          {{"heads_inside", Nesting::heads_inside}, {"ring_inside", Nesting::ring_inside}});
      return;
    case around: {
      std::vector<std::pair<std::string, std::string>> names;
      for (const std::string& inner : names_inside_usp()) names.emplace_back(inner, inner);
      options.around = choose(option, text, names);
      return;
    }
    case backward:
      options.backward = choose<BackwardRing>(option, text,
                                              {{"ring", BackwardRing::ring},
                                               {"burst", BackwardRing::burst},
                                               {"auto", BackwardRing::automatic}});
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
  for (const Scheme& scheme : kSchemes) {
    if (lists(scheme, option)) names.push_back(scheme.name);
    if (!lists(scheme, around)) continue;
    for (const Scheme& inner : kSchemes) {
      if (hands_on(inner, option)) names.push_back(scheme.name + " around " + inner.name);
    }
  }
  return join(names);
}

std::optional<Refusal> refuse(const Combination& combination) {
  const SchemeOptions& options = combination.options;
  const Scheme& scheme = scheme_from_name(options.name);
  for (const SchemeOption option : kSchemeOptions) {
    if (reads(options, option) || !is_set(options, option)) continue;
    return Refusal{runtime::concat(options.name, " has no use for the option ", name(option)),
                   runtime::concat("scheme ", readers(option), ", or leave it out"), option};
  }
  if (lists(scheme, around)) {
    const Scheme* inner = find_scheme(options.around);
    if (inner == nullptr || !inner->inside_usp) {
      return Refusal{runtime::concat(options.name, " around '", options.around, "' does not exist"),
                     "around " + join(names_inside_usp()), around};
    }
  }
  return scheme.refuse ? scheme.refuse(combination) : std::nullopt;
}

void check_legal(const Combination& combination) {
  if (const auto refusal = refuse(combination)) {
    fail(ExitCode::config, "scheme ", combination.options.name, ": ", refusal->reason, "; use ",
         refusal->nearest);
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

Slot input_slot(const std::string& name, SlotKind kind, const SchemeInputs& inputs, int rank) {
  return bound_slot(name, kind, inputs, rank, Role::input);
}
Slot output_slot(const std::string& name, SlotKind kind, const SchemeInputs& inputs, int rank) {
  return bound_slot(name, kind, inputs, rank, Role::output);
}

}  // namespace longhaul::parallel
