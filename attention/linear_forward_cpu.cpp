// Summaries of a run and its outputs, on the CPU. A work item is a segment and a head, swept chunk
// by chunk with the state in scratch.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/linear_forward_cpu.cpp"
#include "runtime/simd_cpu.h"

#include "attention/linear_plan_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {
namespace {

using detail::Segment;
using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

/// Chunks of a segment, in order or backward: f(first row, rows).
template <class F>
void for_chunks(const Segment& segment, const F& f) {
  for (std::int64_t row = segment.begin; row < segment.end; row += kChunk)
    f(row, std::min(kChunk, segment.end - row));
}
template <class F>
void for_chunks_backward(const Segment& segment, const F& f) {
  for (std::int64_t i = segment.chunks() - 1; i >= 0; --i) {
    const std::int64_t row = segment.begin + i * kChunk;
    f(row, std::min(kChunk, segment.end - row));
  }
}

void load_values(const ConstTensorView& view, std::int64_t head, std::int64_t begin,
                 std::int64_t count, Matrix to) {
  load_rows(rows_of(view, head, begin, count), 1, to);
}

class SummarizePlan;
class SummarizeWorker {
 public:
  SummarizeWorker(Scratch& s, const SummarizePlan& plan, const SummarizeTensors& tensors);
  void run(std::int64_t head);

 private:
  void forward(std::int64_t head);
  void backward(std::int64_t head);
  void sum_logs(std::int64_t head) const;
  bool transition() const { return t.transition.data() != nullptr && sizes.delta(); }

  const SummarizePlan& plan;
  const SummarizeTensors& t;
  const ChunkSizes& sizes;
  std::unique_ptr<ChunkKeys> keys;
  Updates updates;
  Matrix state, map, rows;  // map: T, delta rule
  Matrix u, error;
};

class SummarizePlan final : public CpuLinearPlan {
 public:
  SummarizePlan(LinearPass pass, const LinearShape& shape, const Recurrence& recurrence,
                std::vector<std::int64_t> starts, const BlockPlace& place)
      : CpuLinearPlan(pass, shape, recurrence, std::move(starts), place) {
    hold(carved_bytes([this](Scratch& s) { SummarizeWorker(s, *this, {}); }), 0);
  }

 protected:
  void run(const SummarizeTensors& tensors, const BlockMemory& memory,
           const Stream& stream) const override {
    stream.cpu_task([plan = shared_from_this(), this, tensors, scratch = memory.scratch] {
      work(sizes.shape.heads, scratch,
           [&](Scratch& s) { return SummarizeWorker(s, *this, tensors); });
    });
  }
};

SummarizeWorker::SummarizeWorker(Scratch& s, const SummarizePlan& call_plan,
                                 const SummarizeTensors& tensors)
    : plan(call_plan),
      t(tensors),
      sizes(call_plan.sizes),
      keys(make_chunk_keys(s, sizes, false)),
      updates(s, sizes),
      state(matrix(s, sizes.dim(), sizes.value_dim())),
      map(matrix(s, sizes.delta() ? sizes.dim() : 0, sizes.dim())),
      rows(matrix(s, sizes.value_dim(), sizes.dim())),
      u(matrix(s, kChunk, std::max(sizes.dim(), sizes.value_dim()))),
      error(matrix(s, kChunk, std::max(sizes.dim(), sizes.value_dim()))) {}

void SummarizeWorker::run(std::int64_t head) {
  clear(sizes.dim(), state);
  plan.pass() == LinearPass::summarize ? forward(head) : backward(head);
  store_state(state, sizes.value_dim(), t.state, head, sizes, rows);
}

void SummarizeWorker::forward(std::int64_t head) {
  if (transition()) {
    clear(sizes.dim(), map);
    for (std::int64_t d = 0; d < sizes.dim(); ++d) map.row(d)[d] = 1;
  }
  for_chunks(plan.segments.back(), [&](std::int64_t row, std::int64_t count) {
    keys->load(t.inputs, head, row, count, {});
    updates.load_beta(*keys, t.inputs, head, row);
    load_values(t.inputs.v, head, row, count, u);
    updates.solve(*keys, state, sizes.value_dim(), false, u, error);
    updates.write(*keys, u, sizes.value_dim(), state, state);
    if (!transition()) return;
    updates.solve(*keys, map, sizes.dim(), true, u, error);
    updates.write(*keys, u, sizes.dim(), map, map);
  });
  if (transition()) {
    store_rows(map, t.transition, head, 0, sizes.dim());
  } else if (t.transition.data() != nullptr) {
    sum_logs(head);
  }
}

void SummarizeWorker::sum_logs(std::int64_t head) const {
  const ConstTensorView& gates = t.inputs.log_decay;
  const std::int64_t width = t.transition.size(2), step = width > 1 ? gates.stride(2) : 0;
  const float* from = gates.as<float>() + head * gates.stride(1);
  float* to = t.transition.as<float>() + head * t.transition.stride(1);
  for (std::int64_t d = 0; d < width; ++d) {
    double sum = 0;
    for (std::int64_t row = 0; row < sizes.shape.rows; ++row)
      sum += static_cast<double>(from[row * gates.stride(0) + d * step]);
    to[d] = static_cast<float>(sum);
  }
}

void SummarizeWorker::backward(std::int64_t head) {
  if (!plan.segments.front().first) return;
  const bool delta = sizes.delta();
  for_chunks_backward(plan.segments.front(), [&](std::int64_t row, std::int64_t count) {
    keys->load(t.inputs, head, row, count, {.queries = true, .weights = delta});
    load_values(t.dout, head, row, count, error);
    if (delta) {
      updates.load_beta(*keys, t.inputs, head, row);
      updates.solve_backward(*keys, error, state, u);
      updates.times_beta(*keys, -1, u, u);
    }
    updates.write_backward(*keys, error, u, false, state);
  });
}

class SweepPlan;
class SweepWorker {
 public:
  SweepWorker(Scratch& s, const SweepPlan& plan, const SweepTensors& tensors);
  void run(std::int64_t item);

 private:
  void causal_chunk(std::int64_t head, std::int64_t row, std::int64_t count, bool fresh,
                    bool after);
  void read_chunk(std::int64_t head, std::int64_t row, std::int64_t count);

  const SweepPlan& plan;
  const SweepTensors& t;
  const ChunkSizes& sizes;
  std::unique_ptr<ChunkKeys> keys;
  Updates updates;
  Matrix state, rows;
  Matrix u, error, out;
};

class SweepPlan final : public CpuLinearPlan {
 public:
  SweepPlan(const LinearShape& shape, const Recurrence& recurrence,
            std::vector<std::int64_t> starts, const BlockPlace& place)
      : CpuLinearPlan(LinearPass::sweep, shape, recurrence, std::move(starts), place) {
    hold(carved_bytes([this](Scratch& s) { SweepWorker(s, *this, {}); }), 0);
  }

 protected:
  void run(const SweepTensors& tensors, const BlockMemory& memory,
           const Stream& stream) const override {
    stream.cpu_task([plan = shared_from_this(), this, tensors, scratch = memory.scratch] {
      const auto items = static_cast<std::int64_t>(segments.size()) * sizes.shape.heads;
      work(items, scratch, [&](Scratch& s) { return SweepWorker(s, *this, tensors); });
    });
  }
};

SweepWorker::SweepWorker(Scratch& s, const SweepPlan& call_plan, const SweepTensors& tensors)
    : plan(call_plan),
      t(tensors),
      sizes(call_plan.sizes),
      keys(make_chunk_keys(s, sizes, false)),
      updates(s, sizes),
      state(matrix(s, sizes.dim(), sizes.value_dim())),
      rows(matrix(s, sizes.value_dim(), sizes.dim())),
      u(matrix(s, kChunk, sizes.value_dim())),
      error(matrix(s, sizes.delta() ? kChunk : 0, sizes.value_dim())),
      out(matrix(s, kChunk, sizes.value_dim())) {}

void SweepWorker::run(std::int64_t item) {
  const Segment& segment = plan.segments[static_cast<std::size_t>(item / sizes.shape.heads)];
  const std::int64_t head = item % sizes.shape.heads;
  const ConstTensorView before = segment.first ? t.state_in : ConstTensorView();
  const bool after = segment.last && t.state_out.data() != nullptr;
  load_state(before, head, sizes, state, rows);
  if (sizes.how.causal) {
    for_chunks(segment, [&](auto row, auto count) {
      const bool fresh = row == segment.begin && before.data() == nullptr;
      causal_chunk(head, row, count, fresh, after || row + count < segment.end);
    });
  } else {
    for_chunks(segment, [&](auto row, auto count) { read_chunk(head, row, count); });
  }
  if (after) store_state(state, sizes.value_dim(), t.state_out, head, sizes, rows);
}

/// From a zero state where `fresh`; makes the state after the chunk where `after`.
void SweepWorker::causal_chunk(std::int64_t head, std::int64_t row, std::int64_t count, bool fresh,
                               bool after) {
  const Matrix before = fresh ? Matrix{} : state;
  keys->load(t.inputs, head, row, count, {.queries = true, .weights = true});
  updates.load_beta(*keys, t.inputs, head, row);
  load_values(t.inputs.v, head, row, count, u);
  updates.solve(*keys, before, sizes.value_dim(), false, u, error);
  read_state(count, sizes.value_dim(), sizes.dim(), keys->q_in, before, out);
  add_lower(count, sizes.value_dim(), keys->weights, u, out);
  store_rows(out, t.out, head, row, count);
  if (after) updates.write(*keys, u, sizes.value_dim(), before, state);
}

void SweepWorker::read_chunk(std::int64_t head, std::int64_t row, std::int64_t count) {
  keys->load(t.inputs, head, row, count, {.queries = true});
  read_state(count, sizes.value_dim(), sizes.dim(), keys->q_in, state, out);
  store_rows(out, t.out, head, row, count);
}

}  // namespace

std::shared_ptr<const LinearPlan> plan_run(LinearPass pass, const LinearShape& shape,
                                           const Recurrence& recurrence,
                                           const std::vector<std::int64_t>& starts,
                                           const BlockPlace& place) {
  switch (pass) {
    case LinearPass::sweep:
      return std::make_shared<const SweepPlan>(shape, recurrence, starts, place);
    case LinearPass::sweep_backward:
      return plan_sweep_backward(shape, recurrence, starts, place);
    default:
      return std::make_shared<const SummarizePlan>(pass, shape, recurrence, starts, place);
  }
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::attention {

HWY_EXPORT(plan_run);

std::shared_ptr<const LinearPlan> detail::make_cpu_linear_plan(LinearPass pass,
                                                               const LinearShape& shape,
                                                               const Recurrence& recurrence,
                                                               std::vector<std::int64_t> starts,
                                                               const BlockPlace& place) {
  return LONGHAUL_DISPATCH(plan_run)(pass, shape, recurrence, starts, place);
}

}  // namespace longhaul::attention
#endif  // HWY_ONCE
