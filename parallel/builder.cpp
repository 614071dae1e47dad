#include "parallel/builder.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::parallel {

bool overlaps(const View& a, const View& b) {
  return a.slot == b.slot && a.row_begin < b.row_end && b.row_begin < a.row_end &&
         a.head_begin < b.head_end && b.head_begin < a.head_end;
}

bool covers(const View& outer, const View& inner) {
  return outer.slot == inner.slot && outer.row_begin <= inner.row_begin &&
         inner.row_end <= outer.row_end && outer.head_begin <= inner.head_begin &&
         inner.head_end <= outer.head_end;
}

Builder::Builder(int rank, int channels)
    : streams_(channels + 1), last_(static_cast<std::size_t>(channels) + 1, -1) {
  program_.rank = rank;
}

View Builder::add_slot(Slot slot) {
  const View view{static_cast<int>(program_.slots.size()), 0, slot.rows, 0, slot.heads};
  program_.slots.push_back(std::move(slot));
  past_.emplace_back();
  return view;
}

View Builder::scratch(const std::string& slot_name, SlotKind kind, std::int64_t rows, int heads) {
  return add_slot({slot_name, kind, rows, heads, Role::scratch});
}

void Builder::set_phase(int phase) {
  LONGHAUL_CHECK(phase >= phase_, "phase ", phase, " after phase ", phase_);
  phase_ = phase;
}

void Builder::attend(const View& q, const View& kv, std::vector<Slice> bands, const View& partial,
                     Mode mode) {
  if (!bands.empty()) {
    append(Attend{q, kv, std::move(bands), partial, mode}, kCompute);
  } else if (mode == Mode::write) {
    fill(partial);
  }
}

void Builder::attend_backward(const View& q_bundle, const View& kv, std::vector<Slice> bands,
                              const View& dq, Mode dq_mode, const View& dkv, Mode dkv_mode) {
  if (!bands.empty()) {
    append(AttendBackward{q_bundle, kv, std::move(bands), dq, dq_mode, dkv, dkv_mode}, kCompute);
    return;
  }
  if (dq_mode == Mode::write) fill(dq);
  if (dkv_mode == Mode::write) fill(dkv);
}

void Builder::accumulate(const View& src, const View& dst) {
  append(Accumulate{src, dst}, kCompute);
}
void Builder::fill(const View& dst) { append(Fill{dst}, kCompute); }
void Builder::copy(const View& src, const View& dst) { append(Copy{src, dst}, kCompute); }

void Builder::transfer(int channel, std::vector<Message> sends, std::vector<Message> receives) {
  const auto is_empty = [](const Message& message) {
    return std::ranges::all_of(message.views,
                               [](const View& v) { return v.rows() == 0 || v.heads() == 0; });
  };
  std::erase_if(sends, is_empty);
  std::erase_if(receives, is_empty);
  if (sends.empty() && receives.empty()) return;
  append(Transfer{TransferKind::exchange, std::move(sends), std::move(receives)}, channel + 1);
}

void Builder::collect_dependencies(const std::vector<Access>& step_accesses,
                                   std::vector<int>& dependencies) const {
  for (const Access& access : step_accesses) {
    for (const Past& past : past_[static_cast<std::size_t>(access.view.slot)]) {
      if ((access.write || past.write) && overlaps(access.view, past.view))
        dependencies.push_back(past.step);
    }
  }
  std::ranges::sort(dependencies, std::greater<>());
  const auto repeated = std::ranges::unique(dependencies);
  dependencies.erase(repeated.begin(), repeated.end());
}

void Builder::remember(const std::vector<Access>& step_accesses, int step) {
  for (const Access& access : step_accesses) {
    if (program_.slots[static_cast<std::size_t>(access.view.slot)].role == Role::input) continue;
    auto& past = past_[static_cast<std::size_t>(access.view.slot)];
    // A write that covers an older access is ordered after it: waiting for the write is enough.
    if (access.write)
      std::erase_if(past, [&](const Past& p) { return covers(access.view, p.view); });
    past.push_back({access.view, access.write, step});
  }
}

void Builder::append(Operation operation, int stream) {
  LONGHAUL_CHECK(0 <= stream && stream < streams_, "stream ", stream, " of ", streams_);
  const int index = static_cast<int>(program_.steps.size());
  const std::vector<Access> step_accesses = accesses(operation);
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

Program Builder::finish() && { return std::move(program_); }

}  // namespace longhaul::parallel
