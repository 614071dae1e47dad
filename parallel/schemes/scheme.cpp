#include "parallel/schemes/scheme.h"

#include <algorithm>

#include "parallel/schemes/linear_runs.h"
#include "parallel/schemes/other_names.h"
#include "runtime/config/suggest.h"
#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::parallel {

namespace {

using runtime::ExitCode;
using runtime::fail;

using runtime::concat;
const Scheme* const kSchemes[] = {
#define ADDRESS(name) &name##_scheme,
    LONGHAUL_SCHEMES(ADDRESS) LONGHAUL_LINEAR_SCHEMES(ADDRESS)
#undef ADDRESS
};

const Scheme* find_scheme(const std::string& name) {
  const auto found =
      std::ranges::find_if(kSchemes, [&](const Scheme* scheme) { return scheme->name == name; });
  return found != std::end(kSchemes) ? *found : nullptr;
}

/// "a, b or c".
std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

Slot bound_slot(const std::string& name, const Record& record, const SchemeInputs& inputs, int rank,
                Role role) {
  const int heads = record.side == Side::key ? inputs.shapes.kv_heads : inputs.shapes.heads;
  return {name, record, inputs.layout.rows(rank), heads, role, inputs.layout.runs(rank), 0};
}

[[noreturn]] void unknown(const Expression& given, const std::vector<std::string>& known,
                          const std::string& where) {
  if (const OtherName* other = find_other_name(given.name))
    throw ExpressionFault{given.at, concat("unknown scheme '", given.name, "'; ", says(*other))};
  const runtime::Suggestion near = runtime::nearest(given.name, known);
  throw ExpressionFault{
      given.at, concat("unknown scheme '", given.name, "'", where, "; expected ", join(known),
                       near.close ? concat("; did you mean '", near.word, "'?") : "")};
}

/// A scheme that rings can be made of.
Expression conform_ring(const Expression& given, const std::string& argument);

Expression conform_scheme(const Expression& given) {
  const Scheme* scheme = find_scheme(given.name);
  if (scheme == nullptr) unknown(given, scheme_names(), "");
  return conform(given, scheme->arguments, conform_ring);
}

Expression conform_ring(const Expression& given, const std::string& argument) {
  std::vector<std::string> rings;
  for (const Scheme* scheme : kSchemes) {
    if (scheme->ring != nullptr) rings.push_back(scheme->name);
  }
  if (std::ranges::count(rings, given.name) == 0) unknown(given, rings, " for " + argument);
  return conform_scheme(given);
}

}  // namespace

std::vector<std::string> scheme_names(Family family) {
  std::vector<std::string> names;
  for (const Scheme* scheme : kSchemes) {
    if (scheme->family == family) names.push_back(scheme->name);
  }
  return names;
}

const Scheme& scheme_from_name(const std::string& name) {
  const Scheme* scheme = find_scheme(name);
  if (scheme == nullptr)
    fail(ExitCode::config, "unknown scheme '", name, "'; expected ", join(scheme_names()));
  return *scheme;
}

std::string signature(const Scheme& scheme) {
  std::string all;
  for (const Argument& argument : scheme.arguments) {
    std::string values = argument.type == ArgumentType::ring      ? "SCHEME"
                         : argument.type == ArgumentType::boolean ? "true|false"
                                                                  : "";
    for (const std::string& choice : argument.choices)
      values += (values.empty() ? "" : "|") + choice;
    all += concat(all.empty() ? "" : ", ", argument.name, "=", values);
  }
  return scheme.name + (all.empty() ? "" : "(" + all + ")");
}

namespace {
/// "lasp2 spreads linear layers".
std::string says_family(const Scheme& scheme) {
  return concat(
      scheme.name, " spreads ",
      scheme.family == Family::linear ? "recurrences (linear layers)" : "softmax attention");
}
}  // namespace

Expression parse_scheme(const std::string& text, const std::vector<std::string>& policies,
                        Family family) {
  try {
    if (const OtherName* other = find_other_name(text))  // such as deepspeed-ulysses, no expression
      throw ExpressionFault{0, concat("unknown scheme; ", says(*other))};
    const Expression given = parse_expression(text);
    if (std::ranges::count(policies, given.name) != 0)
      throw ExpressionFault{given.at, concat("unknown scheme '", given.name,
                                             "': it is a policy, which stands alone; expected ",
                                             join(scheme_names(family)))};
    std::vector<std::string> known = scheme_names(family);
    known.insert(known.end(), policies.begin(), policies.end());
    const Scheme* scheme = find_scheme(given.name);
    if (scheme == nullptr) unknown(given, known, "");
    if (scheme->family != family)
      throw ExpressionFault{given.at,
                            concat("scheme ", says_family(*scheme), "; expected ", join(known))};
    return conform_scheme(given);
  } catch (const ExpressionFault& fault) {
    fail(ExitCode::config, "scheme '", text, "', character ", fault.at + 1, ": ", fault.message);
  }
}

Expression canonical(const Expression& scheme) {
  try {
    return conform_scheme(scheme);
  } catch (const ExpressionFault& fault) {
    fail(ExitCode::config, "scheme ", scheme.text(), ": ", fault.message);
  }
}

Expression resolved(const Combination& combination) {
  const Scheme& scheme = scheme_from_name(combination.scheme.name);
  return canonical(scheme.resolve ? scheme.resolve(combination) : combination.scheme);
}

bool is_causal(const attention::HeadMasks& masks) {
  return std::ranges::all_of(masks.groups(),
                             [](const auto& group) { return group.mask.is_causal(); });
}

bool sees_whole_past(const attention::HeadMasks& masks) {
  if (!masks.shared() || !is_causal(masks) || masks.tokens() == 0) return masks.tokens() == 0;
  const std::vector<std::int64_t> documents = attention::independent_parts(masks);
  std::int64_t area = 0;
  for (std::size_t i = 1; i < documents.size(); ++i) {
    const std::int64_t length = documents[i] - documents[i - 1];
    area += length * (length + 1) / 2;
  }
  return masks.of(0).area() == area;
}

Combination under_scheme(Combination combination, const Expression& scheme) {
  combination.scheme = scheme;
  return combination;
}

std::string advice(const Combination& refused, const Refusal& refusal) {
  std::vector<std::string> choices;
  for (const Combination& legal : refusal.nearest) {
    std::vector<std::string> changes;
    if (legal.scheme != refused.scheme) changes.push_back("scheme " + legal.scheme.text());
    if (legal.ranks != refused.ranks) changes.push_back(runtime::counted(legal.ranks, "rank"));
    if (legal.layout != refused.layout) changes.push_back(concat("layout ", name(legal.layout)));
    std::string choice;
    for (const std::string& change : changes) choice += (choice.empty() ? "" : " and ") + change;
    choices.push_back(choice);
  }
  return join(choices);
}

std::optional<Refusal> refuse(const Combination& combination) {
  const Scheme& scheme = scheme_from_name(combination.scheme.name);
  if (scheme.family != combination.family) {
    return Refusal{
        says_family(scheme),
        {under_scheme(combination, combination.family == Family::linear ? "lasp2" : "ring")}};
  }
  if (scheme.family == Family::linear) {
    if (combination.layout == LayoutKind::striped) {
      Combination zigzag = combination;
      zigzag.layout = LayoutKind::zigzag;
      return Refusal{"a state goes through consecutive tokens, and a striped rank has none",
                     {zigzag}};
    }
    if (!combination.causal && scheme.name != lasp2_scheme.name)
      return Refusal{"a recurrence that is not causal needs every state everywhere",
                     {under_scheme(combination, "lasp2")}};
  }
  return scheme.refuse ? scheme.refuse(combination) : std::nullopt;
}

void check_legal(const Combination& combination) {
  if (const auto refusal = refuse(combination)) {
    fail(ExitCode::config, "scheme ", combination.scheme.text(), ": ", refusal->reason, "; use ",
         advice(combination, *refusal));
  }
}

Combination combination_of(const SchemeInputs& inputs) {
  const std::optional<LinearCall>& linear = inputs.shapes.linear;
  return {inputs.scheme,
          inputs.layout.ranks(),
          inputs.shapes.heads,
          inputs.shapes.kv_heads,
          inputs.layout.kind(),
          linear ? linear->recurrence.causal : is_causal(inputs.masks),
          linear ? Family::linear : Family::softmax,
          linear || sees_whole_past(inputs.masks)};
}

ProgramGenerator prepare(const SchemeInputs& inputs) {
  check_legal(combination_of(inputs));
  const std::optional<LinearCall>& linear = inputs.shapes.linear;
  if (linear && linear->states_given && inputs.direction == Direction::forward)
    return prepare_from_states(inputs);
  return scheme_from_name(inputs.scheme.name).prepare(inputs);
}

Schedule build_schedule(const SchemeInputs& inputs) {
  check_legal(combination_of(inputs));
  Schedule schedule{resolved(combination_of(inputs)).text(),
                    inputs.direction,
                    inputs.shapes,
                    scheme_from_name(inputs.scheme.name).channels,
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
