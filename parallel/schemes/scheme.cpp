#include "parallel/schemes/scheme.h"

#include <algorithm>

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

const Scheme kSchemes[] = {
    {"ring", 1, prepare_ring},
    {"burst", 1, prepare_ring},
    {"auto", 1, prepare_ring, nullptr, "every mask, layout and number of ranks: ring or burst"},
    {"double_ring", 2, prepare_ring, refuse_double_ring,
     "every mask, layout and number of ranks; outer x inner degrees make up the ranks"},
    {"ring_self_attention", 1, prepare_ring_self_attention},
    {"balanced_ring", 1, prepare_balanced_ring, refuse_balanced_ring,
     "layout contiguous; masks in which no query sees a later key, as causal and documents, and "
     "slices that are so"},
    {"all_gather", 1, prepare_all_gather},
    {"ulysses", 1, prepare_ulysses, refuse_ulysses, kHeadRule},
    {"usp", 2, prepare_usp, refuse_usp,
     "every mask and layout; as ulysses for the degree that shares heads"},
    {"group_cast", 1, prepare_group_cast},
};

Slot bound_slot(const std::string& name, SlotKind kind, const SchemeInputs& inputs, int rank,
                Role role) {
  const int heads = is_key_side(kind) ? inputs.shapes.kv_heads : inputs.shapes.heads;
  return {name, kind, inputs.layout.rows(rank), heads, role, inputs.layout.runs(rank), 0};
}

/// The value of one of `choices` by name.
template <class T>
T choose(const char* what, const std::string& text,
         std::initializer_list<std::pair<const char*, T>> choices) {
  std::string known;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  fail(ExitCode::config, "unknown ", what, " '", text, "'; expected one of: ", known);
}

}  // namespace

std::vector<std::string> scheme_names() {
  std::vector<std::string> names;
  for (const Scheme& scheme : kSchemes) names.push_back(scheme.name);
  return names;
}

const Scheme& scheme_from_name(const std::string& text) {
  std::string known;
  for (const Scheme& scheme : kSchemes) {
    if (scheme.name == text) return scheme;
    known += (known.empty() ? "" : ", ") + scheme.name;
  }
  fail(ExitCode::config, "unknown scheme '", text, "'; expected one of: ", known);
}

Nesting nesting_from_name(const std::string& text) {
  return choose<Nesting>(
      "nesting", text,
      {{"heads_inside", Nesting::heads_inside}, {"ring_inside", Nesting::ring_inside}});
}

BackwardRing backward_ring_from_name(const std::string& text) {
  return choose<BackwardRing>("backward", text,
                              {{"ring", BackwardRing::ring},
                               {"burst", BackwardRing::burst},
                               {"auto", BackwardRing::automatic}});
}

bool is_causal(const attention::HeadMasks& masks) {
  return std::ranges::all_of(masks.groups(),
                             [](const auto& group) { return group.mask.is_causal(); });
}

bool takes_degrees(const std::string& scheme) { return scheme == "double_ring" || scheme == "usp"; }

std::optional<Refusal> refuse(const Combination& combination) {
  const SchemeOptions& options = combination.options;
  const Scheme& scheme = scheme_from_name(options.name);
  const SchemeOptions defaults;
  const auto unused = [&](const char* what, const char* who) {
    return Refusal{runtime::concat(options.name, " has no use for ", what),
                   runtime::concat("scheme ", who, ", or leave it out")};
  };
  const bool usp = options.name == "usp";
  if (!takes_degrees(options.name) && (options.outer != 0 || options.inner != 0))
    return unused("degrees", "double_ring or usp");
  if (!usp && options.nesting != defaults.nesting) return unused("a nesting", "usp");
  if (!usp && options.around != defaults.around) return unused("a scheme to be around", "usp");
  if (usp && options.around != "ring" && options.around != "burst" &&
      options.around != "double_ring") {
    return Refusal{"usp around '" + options.around + "' does not exist",
                   "around ring, burst or double_ring"};
  }
  const bool double_ring =
      options.name == "double_ring" || (usp && options.around == "double_ring");
  if (!double_ring && options.backward != defaults.backward)
    return unused("a choice of backward", "double_ring; of one ring, ring, burst or auto");
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
