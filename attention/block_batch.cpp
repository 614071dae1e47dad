#include "attention/block_batch.h"

#include <omp.h>

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::attention {
namespace {

constexpr std::int64_t kAlignment = 256;  // of scratch and tables

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// A call with at least this part of a thread's share of the batch has all threads.
constexpr std::int64_t kPartsOfShare = 4;

}  // namespace

/// What a task of the stream keeps.
struct BlockBatch::Calls {
  std::vector<std::shared_ptr<const BlockPlan>> plans;
  std::vector<std::int64_t> tables;       // where each plan's begins
  std::vector<std::size_t> alone, small;  // that have all threads, and one each
  std::int64_t small_bytes = 0;           // most scratch of a small one
  int threads = 1;

  template <class Tensors>
  void compute(const std::vector<Tensors>& tensors, std::byte* scratch) const {
    for (const std::size_t i : alone) plans[i]->compute(tensors[i], scratch);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (const std::size_t i : small)
      plans[i]->compute(tensors[i], scratch + omp_get_thread_num() * small_bytes);
  }
};

BlockBatch::BlockBatch(Pass pass, std::span<const BlockProblem> problems, const Scoring& scoring,
                       const BlockPlace& place)
    : place_(place) {
  std::int64_t all = 0;
  for (const BlockProblem& problem : problems) all += area(problem.bands);
  BlockPlace single = place;
  single.threads = 1;
  auto calls = std::make_shared<Calls>();
  calls->threads = place.threads;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const auto& [shape, bands] = problems[i];
    const bool alone =
        place.threads == 1 || place.pretence || area(bands) * kPartsOfShare * place.threads >= all;
    calls->plans.push_back(plan_block(pass, bands, shape, scoring, alone ? place : single));
    (alone ? calls->alone : calls->small).push_back(i);
    const BlockPlan& plan = *calls->plans.back();
    if (alone) {
      scratch_bytes_ = std::max(scratch_bytes_, plan.scratch_bytes());
    } else {
      calls->small_bytes = std::max(calls->small_bytes, aligned(plan.scratch_bytes()));
    }
    calls->tables.push_back(aligned(std::ssize(table_)));
    if (plan.table().empty()) continue;
    table_.resize(static_cast<std::size_t>(calls->tables.back()));
    table_.insert(table_.end(), plan.table().begin(), plan.table().end());
  }
  scratch_bytes_ = std::max(scratch_bytes_, place.threads * calls->small_bytes);
  calls_ = std::move(calls);
}

double BlockBatch::pretended_seconds() const {
  double seconds = 0;
  for (const auto& plan : calls_->plans) seconds += plan->pretended_seconds();
  return seconds;
}

void BlockBatch::forward(std::vector<BlockForwardTensors> tensors, const BlockMemory& memory,
                         const runtime::Stream& stream) const {
  run(std::move(tensors), memory, stream);
}
void BlockBatch::backward(std::vector<BlockBackwardTensors> tensors, const BlockMemory& memory,
                          const runtime::Stream& stream) const {
  run(std::move(tensors), memory, stream);
}

template <class Tensors>
void BlockBatch::run(std::vector<Tensors> tensors, const BlockMemory& memory,
                     const runtime::Stream& stream) const {
  const auto& plans = calls_->plans;
  LONGHAUL_CHECK(tensors.size() == plans.size(), tensors.size(), " calls of a batch of ",
                 plans.size());
  if (plans.empty()) return;
  LONGHAUL_CHECK(stream.device() == place_.device && stream.threads() == place_.threads,
                 "a batch planned for ", place_.threads, " threads of ", to_string(place_.device),
                 " on stream '", stream.name(), "' of ", stream.threads(), " threads of ",
                 to_string(stream.device()));
  if (place_.device.kind == runtime::DeviceKind::cpu && !place_.pretence) {
    for (std::size_t i = 0; i < plans.size(); ++i) plans[i]->check(tensors[i], stream);
    stream.cpu_task([calls = calls_, all = std::move(tensors), scratch = memory.scratch] {
      calls->compute(all, scratch);
    });
    return;
  }
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const BlockMemory own{memory.scratch,
                          memory.table == nullptr ? nullptr : memory.table + calls_->tables[i]};
    if constexpr (std::is_same_v<Tensors, BlockForwardTensors>) {
      plans[i]->forward(tensors[i], own, stream);
    } else {
      plans[i]->backward(tensors[i], own, stream);
    }
  }
}

}  // namespace longhaul::attention
