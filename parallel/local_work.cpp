#include "parallel/local_work.h"

#include <utility>

namespace longhaul::parallel {

Program local_work(Program program) {
  std::erase_if(program.steps, [](const Step& step) { return on_channel(step.operation); });
  for (Step& step : program.steps) step.waits.clear();  // for steps of other streams, all of them
  return program;
}

Program local_work_without_merging(Program program) {
  program = local_work(std::move(program));
  std::vector<Step> kept;
  for (Step& step : program.steps) {
    std::visit(
        [&](auto& operation) {
          if constexpr (requires { without_merging(operation); }) {
            auto left = without_merging(std::move(operation));
            if (!left) return;
            step.operation = *std::move(left);
          }
          kept.push_back(std::move(step));
        },
        step.operation);
  }
  program.steps = std::move(kept);
  return program;
}

}  // namespace longhaul::parallel
