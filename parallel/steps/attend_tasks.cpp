#include "parallel/steps/attend_tasks.h"

#include <algorithm>

#include "attention/block_batch.h"
#include "parallel/disaggregation/transport.h"
#include "parallel/frame.h"
#include "parallel/kernel_use.h"
#include "parallel/schedule.h"
#include "parallel/steps/attend_impl.h"
#include "parallel/verifier/form.h"
#include "parallel/verifier/shadow.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using attention::Pass;

/// The step for one task.
Attend single(const TaskViews& task) {
  return {task.q, task.kv, {task.band}, task.partial, Mode::write, {}};
}
AttendBackward single(const TaskGradientViews& task) {
  return {task.q_bundle, task.kv,     {task.band}, task.dq, Mode::write,
          task.dkv,      Mode::write, {},          task.q};
}

template <class Step>
std::vector<Access> accesses_of_all(const Step& step) {
  std::vector<Access> all;
  for (const auto& task : step.tasks) {
    const auto own = accesses(single(task));
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

/// Outputs by row: a view that begins before the last one's end overlaps it.
template <class Step>
void check_all(const Step& step, const Form& form) {
  std::vector<Access> all;
  for (const auto& task : step.tasks) {
    check(single(task), form);
    form.require((task.server < 0) == (step.tasks.front().server < 0),
                 "has tasks of this rank and of external servers");
    for (const Access& access : accesses(single(task))) all.push_back(access);
  }
  std::erase_if(all, [](const Access& access) { return access.view.empty(); });
  std::ranges::sort(all, [](const Access& a, const Access& b) {
    return std::pair(a.view.slot, a.view.row_begin) < std::pair(b.view.slot, b.view.row_begin);
  });
  const Access *furthest = nullptr, *written = nullptr;  // of this slot so far
  for (const Access& access : all) {
    if (furthest != nullptr && furthest->view.slot != access.view.slot)
      furthest = written = nullptr;
    const Access* const before = access.write ? furthest : written;
    form.require(before == nullptr || before->view.row_end <= access.view.row_begin,
                 "an output of a task overlaps another's view");
    if (furthest == nullptr || furthest->view.row_end < access.view.row_end) furthest = &access;
    if (access.write && (written == nullptr || written->view.row_end < access.view.row_end))
      written = &access;
  }
}

}  // namespace

std::vector<Access> accesses(const AttendTasks& step) { return accesses_of_all(step); }
std::vector<Access> accesses(const AttendTasksBackward& step) { return accesses_of_all(step); }

void check(const AttendTasks& step, const Form& form) { check_all(step, form); }
void check(const AttendTasksBackward& step, const Form& form) { check_all(step, form); }

void rehearse(const AttendTasks& step, Shadow& shadow) {
  for (const TaskViews& task : step.tasks) rehearse(single(task), shadow);
}
void rehearse(const AttendTasksBackward& step, Shadow& shadow) {
  for (const TaskGradientViews& task : step.tasks) rehearse(single(task), shadow);
}

// ---- running

namespace {

attention::BlockShape shape_of(const TaskViews& task, const Preparation& with) {
  return detail::shape_of(task.q, task.kv, {}, with);
}
attention::BlockShape shape_of(const TaskGradientViews& task, const Preparation& with) {
  return detail::shape_of(task.q ? *task.q : task.q_bundle, task.kv, {}, with);
}

void check_weighting(const AttendTasks& step, const Preparation& with) {
  for (const TaskViews& task : step.tasks) detail::check_weighting(task.partial, 2, with);
}
void check_weighting(const AttendTasksBackward& step, const Preparation& with) {
  for (const TaskGradientViews& task : step.tasks)
    detail::check_weighting(task.q_bundle, task.q ? 3 : 4, with);
}

template <class Step>
std::vector<attention::BlockProblem> problems_of(const Step& step, const Preparation& with) {
  std::vector<attention::BlockProblem> problems;
  problems.reserve(step.tasks.size());
  for (const auto& task : step.tasks) problems.push_back({shape_of(task, with), {task.band}});
  return problems;
}

template <class Step>
constexpr Pass kPass = std::is_same_v<Step, AttendTasks> ? Pass::forward : Pass::backward;

/// Of this rank.
template <class Step>
class PreparedTasks final : public PreparedStep {
 public:
  PreparedTasks(const Step& step, Preparation& with)
      : step_(step),
        batch_(kPass<Step>, problems_of(step, with), with.scoring(), with.place()),
        table_(with.add_table(batch_.table())) {
    for (const auto& task : step.tasks)
      attended_.pairs += attention::area(task.band) * shape_of(task, with).heads;
    attended_.pretended_seconds = batch_.pretended_seconds();
  }
  std::int64_t scratch_bytes() const override { return batch_.scratch_bytes(); }
  Attended attended() const override { return attended_; }
  void run(const Frame& frame) const override {
    using Tensors = decltype(detail::tensors_of(single(step_.tasks.front()), frame));
    std::vector<Tensors> tensors;
    tensors.reserve(step_.tasks.size());
    for (const auto& task : step_.tasks) tensors.push_back(detail::tensors_of(single(task), frame));
    const attention::BlockMemory memory{frame.scratch(), frame.table(table_)};
    if constexpr (kPass<Step> == Pass::forward) {
      batch_.forward(std::move(tensors), memory, frame.compute());
    } else {
      batch_.backward(std::move(tensors), memory, frame.compute());
    }
  }

 private:
  const Step& step_;
  const attention::BlockBatch batch_;
  const std::int64_t table_;
  Attended attended_;
};

/// Of external servers: the stream waits for them.
template <class Step>
class RemoteTasks final : public PreparedStep {
 public:
  RemoteTasks(const Step& step, Preparation& with)
      : step_(step),
        problems_(problems_of(step, with)),
        scoring_(with.scoring()),
        transport_(with.transport()) {
    if (transport_ == nullptr && !with.place().sizes_only)
      runtime::fail(runtime::ExitCode::config,
                    "tasks of external attention servers, and no connection to any");
    attention::require_host_memory(with.place(), "external attention servers");
  }
  void run(const Frame& frame) const override {
    using Task = std::conditional_t<kPass<Step> == Pass::forward, ForwardTask, BackwardTask>;
    std::vector<Task> tasks;
    tasks.reserve(step_.tasks.size());
    for (std::size_t i = 0; i < step_.tasks.size(); ++i) {
      const auto& [shape, bands] = problems_[i];
      tasks.push_back({step_.tasks[i].server, shape, bands, scoring_,
                       detail::tensors_of(single(step_.tasks[i]), frame)});
    }
    frame.compute().host_task([transport = transport_, all = std::move(tasks)] {
      if constexpr (kPass<Step> == Pass::forward) {
        transport->forward(all);
      } else {
        transport->backward(all);
      }
    });
  }

 private:
  const Step& step_;
  const std::vector<attention::BlockProblem> problems_;
  const attention::Scoring scoring_;
  const std::shared_ptr<TaskTransport> transport_;
};

template <class Step>
std::unique_ptr<const PreparedStep> prepare_tasks(const Step& step, Preparation& with) {
  check_weighting(step, with);
  if (!step.tasks.empty() && step.tasks.front().server >= 0)
    return std::make_unique<const RemoteTasks<Step>>(step, with);
  return std::make_unique<const PreparedTasks<Step>>(step, with);
}

template <class Step>
void add_kernels_of_all(const Step& step, const Preparation& with, KernelUse& use) {
  for (const auto& task : step.tasks) {
    if (task.server < 0) add_kernels(single(task), with, use);
  }
}

}  // namespace

std::unique_ptr<const PreparedStep> prepare(const AttendTasks& step, Preparation& with) {
  return prepare_tasks(step, with);
}
std::unique_ptr<const PreparedStep> prepare(const AttendTasksBackward& step, Preparation& with) {
  return prepare_tasks(step, with);
}

void add_kernels(const AttendTasks& step, const Preparation& with, KernelUse& use) {
  add_kernels_of_all(step, with, use);
}
void add_kernels(const AttendTasksBackward& step, const Preparation& with, KernelUse& use) {
  add_kernels_of_all(step, with, use);
}

// ---- cost

void add_cost(const AttendTasks& step, const Program& program, int stream, Count& count) {
  for (const TaskViews& task : step.tasks) add_cost(single(task), program, stream, count);
}
void add_cost(const AttendTasksBackward& step, const Program& program, int stream, Count& count) {
  for (const TaskGradientViews& task : step.tasks) add_cost(single(task), program, stream, count);
}

}  // namespace longhaul::parallel
