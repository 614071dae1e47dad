#include "parallel/kernel_use.h"

#include "parallel/frame.h"

namespace longhaul::parallel {
namespace {

void add(const KernelUse::Paths& from, KernelUse::Paths& to) {
  to.pairs += from.pairs;
  to.calls += from.calls;
  for (const auto& [why, pairs] : from.why_exact) to.why_exact[why] += pairs;
}

}  // namespace

KernelUse& KernelUse::operator+=(const KernelUse& other) {
  add(other.forward, forward);
  add(other.backward, backward);
  return *this;
}

KernelUse kernel_use(const SchemeInputs& inputs, int rank, const attention::Scoring& scoring,
                     const attention::BlockPlace& place) {
  KernelUse use;
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    SchemeInputs call = inputs;
    call.direction = direction;
    const Program program = prepare(call)(rank);
    const Preparation with(program, scoring, place);
    for (const Step& step : program.steps) {
      std::visit(
          [&](const auto& of) {
            if constexpr (requires { add_kernels(of, with, use); }) add_kernels(of, with, use);
          },
          step.operation);
    }
  }
  return use;
}

}  // namespace longhaul::parallel
