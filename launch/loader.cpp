#include "launch/loader.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/error.h"
#include "runtime/threads.h"

namespace longhaul::launch {

Loader::Loader(LoaderInputs inputs)
    : inputs_(std::move(inputs)), plan_(batch_plan(inputs_.config)) {}

/// The share of the step's sequences of this rank's group: over all groups the same, whatever the
/// grid.
std::vector<LocalBatch> Loader::make(const StepStart& step) const {
  const AttentionAxis& axis = inputs_.axis;
  std::vector<LocalBatch> batches;
  for (std::int64_t pass = 0; pass < plan_.accumulation_steps; ++pass) {
    const std::int64_t first = step.cursor + (pass * axis.groups + inputs_.group) * axis.sequences;
    const std::int64_t count = std::min(axis.sequences, inputs_.end - first);
    if (count <= 0) break;
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
    std::iota(numbers.begin(), numbers.end(), first);
    batches.push_back(make_local_batch(*inputs_.sequences, numbers, inputs_.shape));
    if (inputs_.prepare) inputs_.prepare(batches.back(), step.step);
  }
  return batches;
}

void Loader::start(const StepStart& step) {
  ahead_.reset();  // waits for what it was making
  // An error belongs to whoever takes the step: the future carries it.
  auto work = [this, step, rank = runtime::thread_rank()] {
    runtime::set_thread_rank(rank);
    return make(step);
  };
  ahead_ = Ahead{step, runtime::start_async("loading", std::move(work))};
}

std::vector<LocalBatch> Loader::take(const StepStart& step) {
  if (!ahead_ || ahead_->step != step) start(step);
  return std::exchange(ahead_, std::nullopt)->batches.get();
}

}  // namespace longhaul::launch
