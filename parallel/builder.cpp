#include "parallel/builder.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::parallel {

Builder::Builder(int rank, int channels)
    : streams_(channels + 1), last_(static_cast<std::size_t>(channels) + 1, -1) {
  program_.rank = rank;
}

View Builder::add_slot(Slot slot) {
  const View view{static_cast<int>(program_.slots.size()), 0, slot.rows, 0, slot.heads};
  past_.emplace_back(slot.heads);
  program_.slots.push_back(std::move(slot));
  return view;
}

View Builder::scratch(const std::string& slot_name, const Record& record, std::int64_t rows,
                      int heads) {
  return add_slot({slot_name, record, rows, heads, Role::scratch});
}

void Builder::set_phase(int phase) {
  LONGHAUL_CHECK(phase >= phase_, "phase ", phase, " after phase ", phase_);
  phase_ = phase;
}

namespace {

/// Query heads [begin, end) of a view and the key/value heads that they read.
struct HeadRange {
  int begin, end, kv_begin, kv_end;
  const std::vector<Slice>* bands;
};

/// Cuts the bands' runs of heads so that each is a multiple of, or within, one key/value head.
std::vector<HeadRange> head_ranges(const Bands& bands, const View& q, const View& kv) {
  LONGHAUL_CHECK(kv.heads() > 0 && q.heads() % kv.heads() == 0, q.heads(), " query heads over ",
                 kv.heads(), " key/value heads");
  const int group = q.heads() / kv.heads();
  std::vector<HeadRange> runs;
  int covered = 0;
  for (const HeadBands& run : bands) {
    LONGHAUL_CHECK(run.head_begin == covered && run.head_end <= q.heads(), "bands of heads [",
                   run.head_begin, ", ", run.head_end, ") after head ", covered, " of ", q.heads());
    covered = run.head_end;
    for (int head = run.head_begin; head < run.head_end;) {
      const int kv_head = head / group;
      int end = (kv_head + 1) * group;
      if (head % group == 0 && run.head_end >= end) end = run.head_end / group * group;
      end = std::min(end, run.head_end);
      runs.push_back({head, end, kv_head, (end + group - 1) / group, &run.bands});
      head = end;
    }
  }
  LONGHAUL_CHECK(covered == q.heads(), "bands cover ", covered, " of ", q.heads(), " heads");
  return runs;
}

}  // namespace

bool sees_nothing(const Bands& bands) {
  return std::ranges::all_of(bands, [](const HeadBands& run) { return run.bands.empty(); });
}

Bands heads_of(const Bands& bands, int begin, int end) {
  Bands some;
  for (const HeadBands& run : bands) {
    const int first = std::max(run.head_begin, begin), last = std::min(run.head_end, end);
    if (first < last) some.push_back({first - begin, last - begin, run.bands});
  }
  return some;
}

void Builder::attend(const View& q, const View& kv, const Bands& bands, const View& partial,
                     Mode mode, const std::optional<View>& v) {
  for (const HeadRange& run : head_ranges(bands, q, kv)) {
    if (run.bands->empty() && mode == Mode::add) continue;
    append(
        Attend{heads_of(q, run.begin, run.end), heads_of(kv, run.kv_begin, run.kv_end), *run.bands,
               heads_of(partial, run.begin, run.end), mode, heads_of(v, run.kv_begin, run.kv_end)},
        kCompute);
  }
}

void Builder::attend_backward(const View& q_bundle, const View& kv, const Bands& bands,
                              const View& dq, Mode dq_mode, const View& dkv, Mode dkv_mode,
                              const std::optional<View>& v) {
  int written = 0;  // key/value heads before this one hold gradients already
  for (const HeadRange& run : head_ranges(bands, q_bundle, kv)) {
    const Mode mode = run.kv_begin < written ? Mode::add : dkv_mode;
    written = run.kv_end;
    if (run.bands->empty() && dq_mode == Mode::add && mode == Mode::add) continue;
    append(AttendBackward{heads_of(q_bundle, run.begin, run.end),
                          heads_of(kv, run.kv_begin, run.kv_end), *run.bands,
                          heads_of(dq, run.begin, run.end), dq_mode,
                          heads_of(dkv, run.kv_begin, run.kv_end), mode,
                          heads_of(v, run.kv_begin, run.kv_end)},
           kCompute);
  }
}

void Builder::attend_tasks(std::vector<TaskViews> tasks) {
  if (!tasks.empty()) append(AttendTasks{std::move(tasks)}, kCompute);
}
void Builder::attend_tasks_backward(std::vector<TaskGradientViews> tasks) {
  if (!tasks.empty()) append(AttendTasksBackward{std::move(tasks)}, kCompute);
}

void Builder::summarize(LinearRun run, const std::optional<View>& dout, const View& state,
                        const std::optional<View>& transition) {
  append(Summarize{std::move(run), dout, state, transition}, kCompute);
}
void Builder::fold(std::vector<FoldLink> links, const std::optional<View>& in, const View& out,
                   const FoldWay& way, const std::optional<View>& out_transition) {
  append(Fold{std::move(links), in, out, way, out_transition}, kCompute);
}
void Builder::sweep(LinearRun run, const std::optional<View>& state_in, const View& out,
                    const std::optional<View>& state_out) {
  append(Sweep{std::move(run), state_in, out, state_out}, kCompute);
}
void Builder::sweep_backward(LinearRun run, const RunGradients& gradients) {
  append(SweepBackward{std::move(run), gradients}, kCompute);
}

void Builder::accumulate(const View& src, const View& dst) {
  accumulate(std::vector{src}, std::vector{dst});
}
void Builder::accumulate(std::vector<View> src, std::vector<View> dst) {
  append(Accumulate{std::move(src), std::move(dst)}, kCompute);
}
void Builder::copy(const View& src, const View& dst) { copy(std::vector{src}, std::vector{dst}); }
void Builder::copy(std::vector<View> src, std::vector<View> dst) {
  append(Copy{std::move(src), std::move(dst)}, kCompute);
}

void Builder::transfer(int channel, std::vector<Message> sends, std::vector<Message> receives,
                       TransferKind kind) {
  const auto is_empty = [](const Message& message) {
    return std::ranges::all_of(message.views, &View::empty);
  };
  std::erase_if(sends, is_empty);
  std::erase_if(receives, is_empty);
  if (sends.empty() && receives.empty()) return;
  append(Transfer{std::move(sends), std::move(receives), kind}, channel + 1);
}

Builder::Past::Segments::iterator Builder::Past::split(std::int64_t row) {
  const auto next = segments_.upper_bound(row);
  const auto at = std::prev(next);
  return at->first == row ? at : segments_.emplace_hint(next, row, at->second);
}

void Builder::Past::add(const Access& access, int step) {
  const View& v = access.view;
  if (v.empty()) return;
  const Entry entry{v.head_begin, v.head_end, access.write, step};
  const auto last = split(v.row_end);
  auto first = split(v.row_begin);
  if (access.write && v.heads() == heads_) {  // nothing older is left of these rows
    first->second.assign(1, entry);
    segments_.erase(std::next(first), last);
    return;
  }
  for (; first != last; ++first) {
    // What a write covers is ordered before it: waiting for the write is enough.
    if (access.write) {
      std::erase_if(first->second, [&](const Entry& e) {
        return v.head_begin <= e.head_begin && e.head_end <= v.head_end;
      });
    }
    first->second.push_back(entry);
  }
}

void Builder::Past::conflicts(const Access& access, std::vector<int>& steps) const {
  const View& v = access.view;
  if (v.rows() == 0) return;
  for (auto at = std::prev(segments_.upper_bound(v.row_begin));
       at != segments_.end() && at->first < v.row_end; ++at) {
    for (const Entry& entry : at->second) {
      if ((access.write || entry.write) && v.head_begin < entry.head_end &&
          entry.head_begin < v.head_end)
        steps.push_back(entry.step);
    }
  }
}

void Builder::collect_dependencies(const std::vector<Access>& step_accesses,
                                   std::vector<int>& dependencies) const {
  for (const Access& access : step_accesses)
    past_[static_cast<std::size_t>(access.view.slot)].conflicts(access, dependencies);
  std::ranges::sort(dependencies, std::greater<>());
  const auto repeated = std::ranges::unique(dependencies);
  dependencies.erase(repeated.begin(), repeated.end());
}

void Builder::remember(const std::vector<Access>& step_accesses, int step) {
  for (const Access& access : step_accesses) {
    const auto slot = static_cast<std::size_t>(access.view.slot);
    if (program_.slots[slot].role != Role::input) past_[slot].add(access, step);
  }
}

namespace {

/// The accesses of an operation, with neighbouring rows as one: the views of a message often lie
/// back to back, or repeat.
std::vector<Access> joined_accesses(const Operation& operation) {
  std::vector<Access> all = accesses(operation);
  std::size_t kept = 0;
  for (const Access& access : all) {
    if (kept > 0) {
      Access& last = all[kept - 1];
      const View &a = last.view, &b = access.view;
      if (a.slot == b.slot && last.write == access.write && a.head_begin == b.head_begin &&
          a.head_end == b.head_end && a.row_begin <= b.row_begin && b.row_begin <= a.row_end) {
        last.view.row_end = std::max(a.row_end, b.row_end);
        continue;
      }
    }
    all[kept++] = access;
  }
  all.resize(kept);
  return all;
}

}  // namespace

void Builder::append(Operation operation, int stream) {
  LONGHAUL_CHECK(0 <= stream && stream < streams_, "stream ", stream, " of ", streams_);
  const int index = static_cast<int>(program_.steps.size());
  const std::vector<Access> step_accesses = joined_accesses(operation);
  std::vector<int> dependencies;
  collect_dependencies(step_accesses, dependencies);

  std::vector<int> clock(static_cast<std::size_t>(streams_), -1);
  const auto absorb = [&](int step) {
    const auto& other = clocks_[static_cast<std::size_t>(step)];
    for (std::size_t s = 0; s < clock.size(); ++s) clock[s] = std::max(clock[s], other[s]);
  };
  auto& last = last_[static_cast<std::size_t>(stream)];
  if (last >= 0) absorb(last);
  Step step{std::move(operation), stream, phase_, {}};
  for (const int dependency : dependencies) {  // latest first: it often implies the others
    const int on = program_.steps[static_cast<std::size_t>(dependency)].stream;
    if (on == stream || clock[static_cast<std::size_t>(on)] >= dependency) continue;
    step.waits.push_back(dependency);
    absorb(dependency);
  }
  clock[static_cast<std::size_t>(stream)] = index;
  clocks_.push_back(std::move(clock));
  last = index;
  remember(step_accesses, index);
  program_.steps.push_back(std::move(step));
}

Program Builder::finish() && {
  std::vector<Step>& steps = program_.steps;
  std::size_t outputs = 0;  // from here on
  for (std::size_t index = 0; index < steps.size(); ++index) {
    const Step& step = steps[index];
    const bool moves = std::holds_alternative<Accumulate>(step.operation) ||
                       std::holds_alternative<Copy>(step.operation);
    if (!moves && step.stream == kCompute) outputs = index + 1;
    for (const int wait : step.waits) {
      const auto on = static_cast<std::size_t>(wait);
      if (step.stream != kCompute && steps[on].stream == kCompute)
        outputs = std::max(outputs, on + 1);
    }
  }
  for (std::size_t index = outputs; index < steps.size(); ++index) {
    if (steps[index].stream == kCompute) steps[index].phase = 2;
  }
  return std::move(program_);
}

}  // namespace longhaul::parallel
