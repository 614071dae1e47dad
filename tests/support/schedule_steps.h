#pragma once
// Steps of a schedule's programs, to break them.

#include <variant>
#include <vector>

#include "parallel/schedule.h"

namespace longhaul::test {

using parallel::Schedule;
using parallel::Step;

/// Steps of rank `rank` that hold an Op and satisfy `picks`.
template <class Op, class Picks>
std::vector<Step*> steps_of(Schedule& schedule, int rank, const Picks& picks) {
  std::vector<Step*> steps;
  for (Step& step : schedule.programs[static_cast<std::size_t>(rank)].steps) {
    if (const Op* op = std::get_if<Op>(&step.operation)) {
      if (picks(*op)) steps.push_back(&step);
    }
  }
  return steps;
}
template <class Op>
std::vector<Step*> steps_of(Schedule& schedule, int rank) {
  return steps_of<Op>(schedule, rank, [](const Op&) { return true; });
}
template <class Op>
Op& as(Step* step) {
  return std::get<Op>(step->operation);
}

}  // namespace longhaul::test
