#include "parallel/schemes/scheme.h"

#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

const Scheme kSchemes[] = {
    {"ring", 1, prepare_ring},
};

Slot bound_slot(const std::string& name, SlotKind kind, const SchemeInputs& inputs, int rank,
                Role role) {
  const int heads = is_key_side(kind) ? inputs.shapes.kv_heads : inputs.shapes.heads;
  return {name, kind, inputs.layout.rows(rank), heads, role, inputs.layout.runs(rank), 0};
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
  runtime::fail(runtime::ExitCode::config, "unknown scheme '", text, "'; expected one of: ", known);
}

Schedule build_schedule(const Scheme& scheme, const SchemeInputs& inputs) {
  Schedule schedule{scheme.name, inputs.direction, inputs.shapes, scheme.channels, {}};
  const ProgramGenerator generate = scheme.prepare(inputs);
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
