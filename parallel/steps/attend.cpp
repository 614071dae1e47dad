#include "parallel/steps/attend.h"

#include "parallel/frame.h"
#include "parallel/kernel_use.h"
#include "parallel/schedule.h"
#include "parallel/steps/attend_impl.h"
#include "parallel/verifier/form.h"
#include "parallel/verifier/shadow.h"
#include "runtime/error.h"

namespace longhaul::parallel {

using runtime::DType;

AttentionRecords::AttentionRecords(const Shapes& shapes) {
  const Field dq_field{"dq", shapes.dim}, dk_field{"dk", shapes.dim},
      dv_field{"dv", shapes.value_dim};
  const Field q_field{"q", shapes.dim, shapes.activation},
      k_field{"k", shapes.dim, shapes.activation},
      v_field{"v", shapes.value_dim, shapes.activation},
      dout_field{"dout", shapes.value_dim, shapes.activation}, out_field{"out", shapes.value_dim};
  const Field lse_field{"lse", 2},  // high, low
      delta_field{"delta", 1, DType::float32, true};
  const bool softmax = shapes.weighting == attention::Weighting::softmax;
  q = {"q", Side::query, Combine::none, {q_field}};
  kv = {"kv", Side::key, Combine::none, {k_field, v_field}};
  k = {"k", Side::key, Combine::none, {k_field}};
  v = {"v", Side::key, Combine::none, {v_field}};
  q_bundle = {"q_bundle", Side::query, Combine::none, {q_field, dout_field}};
  partial = {"partial", Side::query, softmax ? Combine::merge : Combine::add, {out_field}};
  dout_bundle = {"dout_bundle", Side::query, Combine::none, {dout_field}};
  if (softmax) {
    for (Record* bundle : {&q_bundle, &dout_bundle})
      bundle->fields.insert(bundle->fields.end(), {lse_field, delta_field});
    partial.fields.push_back(lse_field);
  }
  dq = {"dq", Side::query, Combine::add, {dq_field}};
  dkv = {"dkv", Side::key, Combine::add, {dk_field, dv_field}};
}

Signature forward_signature(attention::Weighting weighting) {
  if (weighting == attention::Weighting::sigmoid) return {{"q", "k", "v"}, {"out"}};
  return {{"q", "k", "v"}, {"out", "lse"}};
}

Signature backward_signature(attention::Weighting weighting) {
  if (weighting == attention::Weighting::sigmoid)
    return {{"q", "dout", "k", "v"}, {"dq", "dk", "dv"}};
  return {{"q", "dout", "lse", "delta", "k", "v"}, {"dq", "dk", "dv"}};
}

// ---- accesses

std::vector<Access> accesses(const Attend& step) {
  std::vector<Access> all{{step.q, false}, {step.kv, false}, {step.partial, true}};
  if (step.v) all.push_back({*step.v, false});
  return all;
}

std::vector<Access> accesses(const AttendBackward& step) {
  std::vector<Access> all{
      {step.q_bundle, false}, {step.kv, false}, {step.dq, true}, {step.dkv, true}};
  for (const auto& apart : {step.v, step.q}) {
    if (apart) all.push_back({*apart, false});
  }
  return all;
}

// ---- form

namespace {

void check_keys(const View& kv, const std::optional<View>& v, const Form& form) {
  form.require_kind(kv, v ? "k" : "kv");
  if (!v) return;
  form.require_kind(*v, "v");
  form.require_same_extent(kv, *v);
}

void check_bands(const std::vector<Slice>& bands, const View& q, const View& kv, const Form& form) {
  form.require(kv.heads() > 0 && q.heads() % kv.heads() == 0,
               "query heads are no multiple of key/value heads");
  for (const Slice& band : bands) {
    form.require(
        0 <= band.q_begin && band.q_end <= q.rows() && 0 <= band.k_begin && band.k_end <= kv.rows(),
        "a band leaves its views");
  }
}

}  // namespace

void check(const Attend& step, const Form& form) {
  form.require_kind(step.q, "q");
  check_keys(step.kv, step.v, form);
  form.require_kind(step.partial, "partial");
  form.require_same_extent(step.q, step.partial);
  check_bands(step.bands, step.q, step.kv, form);
}

void check(const AttendBackward& step, const Form& form) {
  form.require_kind(step.q_bundle, step.q ? "dout_bundle" : "q_bundle");
  if (step.q) {
    form.require_kind(*step.q, "q");
    form.require_same_extent(step.q_bundle, *step.q);
  }
  check_keys(step.kv, step.v, form);
  form.require_kind(step.dq, "dq");
  form.require_kind(step.dkv, "dkv");
  form.require_same_extent(step.q_bundle, step.dq);
  form.require_same_extent(step.kv, step.dkv);
  check_bands(step.bands, step.q_bundle, step.kv, form);
}

// ---- rehearsal

namespace {

/// Keys, and values of the same tokens and heads.
void require_keys(const View& kv, const std::optional<View>& v, Shadow& shadow) {
  shadow.require_defined(kv);
  if (!v) return;
  shadow.require_defined(*v);
  const ShadowCells keys = shadow.cells(kv), values = shadow.cells(*v);
  for (std::int64_t row = 0; row < keys.rows; ++row) {
    for (int cell = 0; cell < keys.per_view; ++cell) {
      if (keys.id(row, cell) != values.id(row, cell)) {
        shadow.fail(Fault::misplaced, "pairs row ", row,
                    " of the keys with values of another token or head");
      }
    }
  }
}

/// Queries, and what else backward needs of the same tokens and heads.
void require_queries(const View& q, const View& bundle, Shadow& shadow) {
  shadow.require_defined(q);
  const ShadowCells queries = shadow.cells(q), others = shadow.cells(bundle);
  for (std::int64_t row = 0; row < queries.rows; ++row) {
    for (int cell = 0; cell < queries.per_view; ++cell) {
      if (queries.id(row, cell) != others.id(row, cell)) {
        shadow.fail(Fault::misplaced, "pairs row ", row,
                    " of the queries with a gradient of another token or head");
      }
    }
  }
}

/// The cell of the key view that a cell of the query view attends to, as the kernel pairs heads.
int local_kv_cell(int q_cell, const View& q, const View& kv, const ShadowUnits& units) {
  return q_cell * units.q * kv.heads() / q.heads() / units.kv;
}

/// into[q] += the weights of the keys that each query row sees: two prefix-sum look-ups a band and
/// row.
void add_visible_keys(const View& q, const View& kv, const std::vector<Slice>& bands,
                      const View& into, Shadow& shadow) {
  const ShadowCells queries = shadow.cells(q), keys = shadow.cells(kv), sums = shadow.cells(into);
  const ShadowUnits& units = shadow.units();
  const int q_all = shadow.cells_of_all(Side::query), kv_all = shadow.cells_of_all(Side::key);
  std::vector<std::vector<std::uint64_t>> prefix(static_cast<std::size_t>(keys.per_view));
  for (int cell = 0; cell < keys.per_view; ++cell) {
    auto& p = prefix[static_cast<std::size_t>(cell)];
    p.assign(1, 0);
    p.reserve(static_cast<std::size_t>(keys.rows) + 1);
    for (std::int64_t row = 0; row < keys.rows; ++row)
      p.push_back(p.back() + shadow_weight(Side::key, keys.id(row, cell)));
  }
  for (int cell = 0; cell < queries.per_view; ++cell) {
    const int kv_cell = local_kv_cell(cell, q, kv, units);
    const auto& p = prefix[static_cast<std::size_t>(kv_cell)];
    for (const Slice& band : bands) {
      for (std::int64_t row = band.q_begin; row < band.q_end; ++row) {
        const std::int64_t begin = band.key_begin(row), end = band.key_end(row);
        if (begin >= end) continue;
        const std::int64_t q_id = queries.id(row, cell), kv_id = keys.id(begin, kv_cell);
        if (kv_cell_of(static_cast<int>(q_id % q_all), units, shadow.shapes()) != kv_id % kv_all) {
          shadow.fail(Fault::misplaced, "pairs query heads with key/value heads of another group");
        }
        sums.sum(row, cell) +=
            p[static_cast<std::size_t>(end)] - p[static_cast<std::size_t>(begin)];
      }
    }
  }
}

/// into[k] += the weights of the queries that see each key row, through a difference array.
void add_visible_queries(const View& q, const View& kv, const std::vector<Slice>& bands,
                         const View& into, Shadow& shadow) {
  const ShadowCells queries = shadow.cells(q), sums = shadow.cells(into);
  std::vector<std::uint64_t> change;
  for (int cell = 0; cell < queries.per_view; ++cell) {
    const int kv_cell = local_kv_cell(cell, q, kv, shadow.units());
    change.assign(static_cast<std::size_t>(kv.rows()) + 1, 0);
    for (const Slice& band : bands) {
      for (std::int64_t row = band.q_begin; row < band.q_end; ++row) {
        const std::int64_t begin = band.key_begin(row), end = band.key_end(row);
        if (begin >= end) continue;
        const std::uint64_t weight = shadow_weight(Side::query, queries.id(row, cell));
        change[static_cast<std::size_t>(begin)] += weight;
        change[static_cast<std::size_t>(end)] -= weight;
      }
    }
    std::uint64_t sum = 0;
    for (std::int64_t row = 0; row < kv.rows(); ++row) {
      sum += change[static_cast<std::size_t>(row)];
      sums.sum(row, kv_cell) += sum;
    }
  }
}

}  // namespace

void rehearse(const Attend& step, Shadow& shadow) {
  shadow.require_defined(step.q);
  require_keys(step.kv, step.v, shadow);
  shadow.prepare_accumulator(step.partial, step.q, step.mode);
  add_visible_keys(step.q, step.kv, step.bands, step.partial, shadow);
}

void rehearse(const AttendBackward& step, Shadow& shadow) {
  shadow.require_defined(step.q_bundle);
  if (step.q) require_queries(*step.q, step.q_bundle, shadow);
  require_keys(step.kv, step.v, shadow);
  shadow.prepare_accumulator(step.dq, step.q_bundle, step.dq_mode);
  shadow.prepare_accumulator(step.dkv, step.kv, step.dkv_mode);
  add_visible_keys(step.q_bundle, step.kv, step.bands, step.dq, shadow);
  add_visible_queries(step.q_bundle, step.kv, step.bands, step.dkv, shadow);
}

// ---- running

namespace {

/// What an attention step reads, for the work that it enqueues.
class AttendReads {
 public:
  AttendReads(const Attend& step, const Frame& frame)
      : q_(frame.reads(step.q)), kv_(frame.reads(step.kv)) {
    if (step.v) v_ = frame.reads(*step.v);
  }
  bool borrowed() const { return q_.borrowed() || kv_.borrowed() || (v_ && v_->borrowed()); }
  void fill(attention::BlockForwardTensors& tensors) const {
    const auto kv = kv_.now();
    tensors.q = q_.now()[0];
    tensors.k = kv[0];
    tensors.v = v_ ? v_->now()[0] : kv[1];
  }

 private:
  ReadFields q_, kv_;
  std::optional<ReadFields> v_;
};

class AttendBackwardReads {
 public:
  AttendBackwardReads(const AttendBackward& step, const Frame& frame)
      : bundle_(frame.reads(step.q_bundle)), kv_(frame.reads(step.kv)) {
    if (step.q) q_ = frame.reads(*step.q);
    if (step.v) v_ = frame.reads(*step.v);
  }
  bool borrowed() const {
    return bundle_.borrowed() || kv_.borrowed() || (q_ && q_->borrowed()) || (v_ && v_->borrowed());
  }
  void fill(attention::BlockBackwardTensors& tensors) const {
    const auto kv = kv_.now(), bundle = bundle_.now();
    const std::size_t dout = q_ ? 0 : 1;
    attention::BlockBackwardInputs& inputs = tensors.inputs;
    inputs.q = q_ ? q_->now()[0] : bundle[0];
    inputs.k = kv[0];
    inputs.v = v_ ? v_->now()[0] : kv[1];
    inputs.dout = bundle[dout];
    if (bundle.size() > dout + 1) {
      inputs.lse = bundle[dout + 1];
      inputs.delta = bundle[dout + 2];
    }
  }

 private:
  ReadFields bundle_, kv_;
  std::optional<ReadFields> q_, v_;
};

attention::BlockForwardTensors outputs_of(const Attend& step, const Frame& frame) {
  attention::BlockForwardTensors tensors;
  const auto partial = frame.outputs(step.partial);
  tensors.out = partial[0];
  if (partial.size() > 1) tensors.lse = partial[1];
  tensors.mode = step.mode;
  return tensors;
}

attention::BlockBackwardTensors outputs_of(const AttendBackward& step, const Frame& frame) {
  attention::BlockBackwardTensors tensors;
  const auto dkv = frame.outputs(step.dkv);
  tensors.dq = frame.outputs(step.dq)[0];
  tensors.dq_mode = step.dq_mode;
  tensors.dk = dkv[0];
  tensors.dv = dkv[1];
  tensors.dkv_mode = step.dkv_mode;
  return tensors;
}

}  // namespace

namespace detail {

attention::BlockShape shape_of(const View& q, const View& kv, const std::optional<View>& v,
                               const Preparation& with) {
  const auto width_of = [&](const View& view, std::size_t field) {
    return with.record(view).fields[field].width;
  };
  return {q.rows(),
          kv.rows(),
          q.heads(),
          kv.heads(),
          width_of(q, 0),
          v ? width_of(*v, 0) : width_of(kv, 1),
          with.record(q).fields[0].dtype,
          with.program().slot(q).heads,
          with.program().slot(kv).heads};
}

void check_weighting(const View& view, std::size_t fields_of_softmax, const Preparation& with) {
  const bool softmax = with.scoring().weighting == attention::Weighting::softmax;
  LONGHAUL_CHECK((with.record(view).fields.size() == fields_of_softmax) == softmax,
                 "the program was made for another weighting than the call's");
}

attention::BlockForwardTensors tensors_of(const Attend& step, const Frame& frame) {
  attention::BlockForwardTensors tensors = outputs_of(step, frame);
  AttendReads(step, frame).fill(tensors);
  return tensors;
}

attention::BlockBackwardTensors tensors_of(const AttendBackward& step, const Frame& frame) {
  attention::BlockBackwardTensors tensors = outputs_of(step, frame);
  AttendBackwardReads(step, frame).fill(tensors);
  return tensors;
}

}  // namespace detail

namespace {

using detail::check_weighting;
using detail::shape_of;
using detail::tensors_of;

/// A block call of a program.
class PreparedBlock : public PreparedStep {
 public:
  PreparedBlock(attention::Pass pass, const std::vector<Slice>& bands,
                const attention::BlockShape& shape, Preparation& with)
      : plan_(attention::plan_block(pass, bands, shape, with.scoring(), with.place())),
        table_(with.add_table(plan_->table())),
        attended_{attention::area(bands) * shape.heads, plan_->pretended_seconds()} {}
  std::int64_t scratch_bytes() const override { return plan_->scratch_bytes(); }
  Attended attended() const override { return attended_; }

 protected:
  attention::BlockMemory memory(const Frame& frame) const {
    return {frame.scratch(), frame.table(table_)};
  }
  const attention::BlockPlan& plan() const { return *plan_; }
  /// The block call of tensors some of which are known only when it runs. On the CPU: Form refuses
  /// no loan, and schemes lend nowhere else.
  template <class Tensors, class Reads>
  void run_late(const Tensors& outputs, const Reads& reads, const Frame& frame) const {
    frame.compute().cpu_task(
        [plan = plan_, tensors = outputs, reads, scratch = frame.scratch()]() mutable {
          reads.fill(tensors);
          plan->compute(tensors, scratch);
        });
  }

 private:
  const std::shared_ptr<const attention::BlockPlan> plan_;
  const std::int64_t table_;
  const Attended attended_;
};

class PreparedAttend final : public PreparedBlock {
 public:
  PreparedAttend(const Attend& step, Preparation& with)
      : PreparedBlock(attention::Pass::forward, step.bands, shape_of(step.q, step.kv, step.v, with),
                      with),
        step_(step) {}
  void run(const Frame& frame) const override {
    const AttendReads reads(step_, frame);
    if (reads.borrowed()) return run_late(outputs_of(step_, frame), reads, frame);
    plan().forward(tensors_of(step_, frame), memory(frame), frame.compute());
  }

 private:
  const Attend& step_;
};

class PreparedAttendBackward final : public PreparedBlock {
 public:
  PreparedAttendBackward(const AttendBackward& step, Preparation& with)
      : PreparedBlock(attention::Pass::backward, step.bands,
                      shape_of(step.q ? *step.q : step.q_bundle, step.kv, step.v, with), with),
        step_(step) {}
  void run(const Frame& frame) const override {
    const AttendBackwardReads reads(step_, frame);
    if (reads.borrowed()) return run_late(outputs_of(step_, frame), reads, frame);
    plan().backward(tensors_of(step_, frame), memory(frame), frame.compute());
  }

 private:
  const AttendBackward& step_;
};

}  // namespace

std::unique_ptr<const PreparedStep> prepare(const Attend& step, Preparation& with) {
  check_weighting(step.partial, 2, with);
  return std::make_unique<const PreparedAttend>(step, with);
}

std::unique_ptr<const PreparedStep> prepare(const AttendBackward& step, Preparation& with) {
  check_weighting(step.q_bundle, step.q ? 3 : 4, with);
  return std::make_unique<const PreparedAttendBackward>(step, with);
}

// ---- merging

std::optional<Attend> without_merging(Attend step) {
  step.mode = Mode::write;
  return step;
}

std::optional<AttendBackward> without_merging(AttendBackward step) {
  step.dq_mode = step.dkv_mode = Mode::write;
  return step;
}

// ---- kernels

namespace {

void add_kernels(attention::Pass pass, const std::vector<Slice>& bands,
                 const attention::BlockShape& shape, const Preparation& with,
                 KernelUse::Paths& paths) {
  const auto choice = attention::choose_kernels(pass, bands, shape, with.scoring(), with.place());
  attention::KernelShares shares = attention::shares_of(choice, bands);
  shares *= shape.heads;
  paths.pairs += shares;
  paths.calls += static_cast<std::int64_t>(choice.calls.size());
  if (shares.exact > 0) paths.why_exact[choice.why] += shares.exact;
}

}  // namespace

void add_kernels(const Attend& step, const Preparation& with, KernelUse& use) {
  add_kernels(attention::Pass::forward, step.bands, shape_of(step.q, step.kv, step.v, with), with,
              use.forward);
}

void add_kernels(const AttendBackward& step, const Preparation& with, KernelUse& use) {
  add_kernels(attention::Pass::backward, step.bands,
              shape_of(step.q ? *step.q : step.q_bundle, step.kv, step.v, with), with,
              use.backward);
}

// ---- cost

void add_cost(const Attend& step, const Program&, int, Count& count) {
  count.pairs += attention::area(step.bands) * step.q.heads();
}

void add_cost(const AttendBackward& step, const Program&, int, Count& count) {
  count.pairs += attention::area(step.bands) * step.q_bundle.heads();
}

}  // namespace longhaul::parallel
