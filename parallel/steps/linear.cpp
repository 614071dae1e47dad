#include "parallel/steps/linear.h"

#include <algorithm>

#include "parallel/frame.h"
#include "parallel/schedule.h"
#include "parallel/verifier/form.h"
#include "parallel/verifier/linear_shadow.h"
#include "parallel/verifier/shadow.h"
#include "runtime/error.h"

namespace longhaul::parallel {

using attention::Decay;
using attention::StateRule;
using runtime::DType;

// ---- records

LinearRecords::LinearRecords(const Shapes& shapes) {
  LONGHAUL_CHECK(shapes.linear, "the shapes are of softmax attention");
  const attention::Recurrence& of = shapes.linear->recurrence;
  const std::int64_t d = shapes.dim, e = shapes.value_dim;
  const DType activation = shapes.activation;
  qk = {"qk", Side::key, Combine::none, {{"q", d, activation}, {"k", d, activation}}};
  v = {"v", Side::query, Combine::none, {{"v", e, activation}}};
  dout = {"dout", Side::query, Combine::none, {{"dout", e, activation}}};
  out = {"linear_out", Side::query, Combine::none, {{"out", e}}};
  dqk = {"dqk", Side::key, Combine::none, {{"dq", d}, {"dk", d}}};
  dv = {"dv", Side::query, Combine::none, {{"dv", e}}};
  gate = {"gate", Side::query};
  dgate = {"dgate", Side::query};
  const bool vector = of.decay == Decay::vector;
  if (vector || of.decay == Decay::scalar) {
    gate.fields.push_back({"log_decay", vector ? d : 1, DType::float32, !vector});
    dgate.fields.push_back({"dlog_decay", vector ? d : 1, DType::float32, !vector});
  }
  if (of.rule == StateRule::delta) {
    gate.fields.push_back({"beta", 1, DType::float32, true});
    dgate.fields.push_back({"dbeta", 1, DType::float32, true});
  }
  slopes_ = of.decay == Decay::head;
  slopes = {"slopes", Side::query, Combine::none, {{"log_decay", 1, DType::float32, true}}};
  dslopes = {"dslopes", Side::query, Combine::add, {{"dlog_decay", 1, DType::float32, true}}};
  const auto state_of = [&](std::string_view field) {
    return Record{"state", Side::state, Combine::none, {{field, d}}};
  };
  state = state_of("states");
  initial_state = state_of("initial_state");
  final_state = state_of("final_state");
  dinitial_state = state_of("dinitial_state");
  dfinal_state = state_of("dfinal_state");
  state_rows = e;
  const std::int64_t width = attention::transition_width(of, d);
  transition = {"transition", Side::state, Combine::none, {{"transitions", width}}};
  transition_rows = width == 0 ? 0 : attention::transition_rows(of, d);
}

Signature linear_forward_signature(const LinearCall& call) {
  if (call.states_given)
    return {{"q", "k", "v", "log_decay", "beta", "initial_state", "states"},
            {"out", "final_state"}};
  return {{"q", "k", "v", "log_decay", "beta", "initial_state"},
          {"out", "states", "transitions", "final_state"}};
}

Signature linear_backward_signature() {
  return {{"q", "k", "v", "log_decay", "beta", "initial_state", "states", "transitions", "dout",
           "dfinal_state"},
          {"dq", "dk", "dv", "dlog_decay", "dbeta", "dinitial_state"}};
}

// ---- accesses

namespace {

void add(const std::optional<View>& view, bool write, std::vector<Access>& all) {
  if (view) all.push_back({*view, write});
}

std::vector<Access> reads_of(const LinearRun& run) {
  std::vector<Access> all{{run.qk, false}, {run.v, false}};
  add(run.gate, false, all);
  add(run.slopes, false, all);
  return all;
}

}  // namespace

std::vector<Access> accesses(const Summarize& step) {
  std::vector<Access> all = reads_of(step.run);
  add(step.dout, false, all);
  all.push_back({step.state, true});
  add(step.transition, true, all);
  return all;
}

std::vector<Access> accesses(const Fold& step) {
  std::vector<Access> all;
  for (const FoldLink& link : step.links) {
    all.push_back({link.state, false});
    add(link.transition, false, all);
  }
  add(step.in, false, all);
  add(step.way.slopes, false, all);
  all.push_back({step.out, true});
  add(step.out_transition, true, all);
  return all;
}

std::vector<Access> accesses(const Sweep& step) {
  std::vector<Access> all = reads_of(step.run);
  add(step.state_in, false, all);
  all.push_back({step.out, true});
  add(step.state_out, true, all);
  return all;
}

std::vector<Access> accesses(const SweepBackward& step) {
  std::vector<Access> all = reads_of(step.run);
  all.push_back({step.gradients.dout, false});
  add(step.gradients.state_in, false, all);
  add(step.gradients.dstate_out, false, all);
  all.push_back({step.gradients.dqk, true});
  all.push_back({step.gradients.dv, true});
  add(step.gradients.dgate, true, all);
  add(step.gradients.dslopes, true, all);
  add(step.gradients.dstate_in, true, all);
  return all;
}

// ---- form

namespace {

/// A view of one row and head range like `like`'s, of that kind.
void require_rows(const View& view, std::string_view kind, const View& like, const Form& form) {
  form.require_kind(view, kind);
  form.require_same_extent(view, like);
}

/// Whole states, or the same rows of each, with the heads of `like`.
void require_state(const std::optional<View>& view, const View& like, const Form& form) {
  if (!view) return;
  form.require_kind(*view, "state");
  form.require(view->heads() == like.heads(), "a state has other heads than the run's values");
  form.require(view->rows() == form.shapes().value_dim,
               "a state has other rows than the value dim");
}

void check_slopes(const std::optional<View>& slopes, const attention::Recurrence& of,
                  const View& like, const Form& form) {
  form.require(slopes.has_value() == (of.decay == Decay::head),
               "constant decays are read where the recurrence has them, and nowhere else");
  if (!slopes) return;
  form.require_kind(*slopes, "slopes");
  form.require(slopes->rows() == 1 && slopes->heads() == like.heads(),
               "constant decays are one row of the run's heads");
}

/// What T is where it is a slot: `wanted` rows of those heads.
void check_transition(const std::optional<View>& view, const attention::Recurrence& of,
                      const View& like, const Form& form) {
  if (!view) return;
  const std::int64_t dim = form.shapes().dim;
  form.require_kind(*view, "transition");
  form.require(attention::transition_width(of, dim) > 0, "a transition that is known");
  form.require(view->heads() == like.heads() && view->rows() == attention::transition_rows(of, dim),
               "a transition of other sizes than the state's");
}

void check_run(const LinearRun& run, const Form& form) {
  form.require_kind(run.qk, "qk");
  form.require_kind(run.v, "v");
  form.require(run.qk.rows() == run.v.rows(), "q, k and v are of different rows");
  form.require(run.qk.heads() > 0 && run.v.heads() % run.qk.heads() == 0,
               "value heads are no multiple of key heads");
  const bool gated = run.recurrence.decay == Decay::scalar ||
                     run.recurrence.decay == Decay::vector ||
                     run.recurrence.rule == StateRule::delta;
  form.require(run.gate.has_value() == gated,
               "gates are read where the recurrence has them, and nowhere else");
  if (run.gate) require_rows(*run.gate, "gate", run.v, form);
  check_slopes(run.slopes, run.recurrence, run.v, form);
  std::int64_t before = -1;
  for (const std::int64_t start : run.starts) {
    form.require(before < start && start < run.v.rows(), "starts do not rise within the run");
    before = start;
  }
}

}  // namespace

void check(const Summarize& step, const Form& form) {
  check_run(step.run, form);
  if (step.dout) require_rows(*step.dout, "dout", step.run.v, form);
  require_state(step.state, step.run.v, form);
  check_transition(step.transition, step.run.recurrence, step.run.v, form);
  form.require(!step.transition || (!step.dout && step.run.starts.empty()),
               "a transition of a run that has starts, or of a backward pass");
}

void check(const Fold& step, const Form& form) {
  form.require(!step.links.empty(), "nothing to fold");
  form.require_kind(step.out, "state");
  if (step.in) require_rows(*step.in, "state", step.out, form);
  check_slopes(step.way.slopes, step.way.recurrence, step.out, form);
  const bool known = attention::transition_width(step.way.recurrence, form.shapes().dim) == 0;
  bool first = !step.in;
  for (const FoldLink& link : step.links) {
    require_rows(link.state, "state", step.out, form);
    check_transition(link.transition, step.way.recurrence, step.out, form);
    const bool needed = !known && !link.reset && (!first || step.out_transition);
    form.require(!needed || link.transition, "a link without its transition");
    form.require(link.state.slot != step.out.slot || !overlaps(link.state, step.out) ||
                     step.links.size() == 1,
                 "a fold of several links into one of them");
    form.require(!link.reset || !step.out_transition, "a transition through a reset");
    first = false;
  }
  form.require(!step.in || step.links.size() == 1 || !overlaps(*step.in, step.out),
               "a fold of several links into what it begins with");
  check_transition(step.out_transition, step.way.recurrence, step.out, form);
  form.require(!step.out_transition || !step.in, "a transition of links that begin with a state");
}

void check(const Sweep& step, const Form& form) {
  check_run(step.run, form);
  require_rows(step.out, "linear_out", step.run.v, form);
  require_state(step.state_in, step.run.v, form);
  require_state(step.state_out, step.run.v, form);
}

void check(const SweepBackward& step, const Form& form) {
  check_run(step.run, form);
  require_rows(step.gradients.dout, "dout", step.run.v, form);
  require_rows(step.gradients.dqk, "dqk", step.run.qk, form);
  require_rows(step.gradients.dv, "dv", step.run.v, form);
  form.require(step.gradients.dgate.has_value() == step.run.gate.has_value(),
               "gradients of gates go with gates");
  if (step.gradients.dgate) require_rows(*step.gradients.dgate, "dgate", step.run.v, form);
  if (step.gradients.dslopes) {
    form.require_kind(*step.gradients.dslopes, "dslopes");
    form.require(step.run.slopes && same_extent(*step.gradients.dslopes, *step.run.slopes),
                 "gradients of constant decays are as the decays");
  }
  require_state(step.gradients.state_in, step.run.v, form);
  require_state(step.gradients.dstate_out, step.run.v, form);
  require_state(step.gradients.dstate_in, step.run.v, form);
}

// ---- rehearsal

void rehearse(const Summarize& step, Shadow& shadow) {
  const ShadowRun run(step.run, shadow);
  const bool backward = step.dout.has_value();
  if (backward) run.require_same(*step.dout);
  run.summarize(backward, step.state);
  if (step.transition) run.write_transition(*step.transition);
}

void rehearse(const Fold& step, Shadow& shadow) {
  ShadowFold fold(step.in, step.out, shadow);
  if (step.way.slopes) shadow.require_defined(*step.way.slopes);
  bool any = step.in.has_value();
  for (const FoldLink& link : step.links) {
    if (link.reset || !any) {
      fold.replace(link.state);
    } else {
      fold.add(link.transition, link.tokens, step.way.transposed, link.state);
    }
    any = true;
  }
  fold.finish();
  if (!step.out_transition) return;
  for (const FoldLink& link : step.links) fold.compose(link.transition, link.tokens);
  fold.finish_transition(*step.out_transition);
}

void rehearse(const Sweep& step, Shadow& shadow) {
  const ShadowRun run(step.run, shadow);
  run.sweep(step.state_in, step.out, step.state_out);
}

void rehearse(const SweepBackward& step, Shadow& shadow) {
  const ShadowRun run(step.run, shadow);
  run.require_same(step.gradients.dout);
  run.sweep_backward(step.gradients.state_in, step.gradients.dstate_out,
                     {step.gradients.dqk, step.gradients.dv, step.gradients.dgate},
                     step.gradients.dstate_in);
  if (step.gradients.dslopes) run.add_slopes(*step.gradients.dslopes, step.gradients.dslopes_mode);
}

// ---- running

namespace {

using runtime::ConstTensorView;
using runtime::TensorView;

class PreparedRun : public PreparedStep {
 public:
  PreparedRun(attention::LinearPass pass, const LinearRun& run, Preparation& with)
      : run_(run),
        plan_(attention::plan_linear(pass, shape_of(run, with), run.recurrence, run.starts,
                                     with.place())),
        table_(with.add_table(plan_->table())) {}
  std::int64_t scratch_bytes() const override { return plan_->scratch_bytes(); }

 protected:
  attention::LinearInputs inputs(const Frame& frame) const {
    const auto qk = frame.inputs(run_.qk);
    attention::LinearInputs in{qk[0], qk[1], frame.inputs(run_.v)[0], {}, {}};
    if (run_.slopes) in.log_decay = frame.inputs(*run_.slopes)[0];
    if (run_.gate) {
      const auto gate = frame.inputs(*run_.gate);
      if (run_.recurrence.decay == Decay::scalar || run_.recurrence.decay == Decay::vector)
        in.log_decay = gate[0];
      if (run_.recurrence.rule == StateRule::delta) in.beta = gate.back();
    }
    return in;
  }
  attention::BlockMemory memory(const Frame& frame) const {
    return {frame.scratch(), frame.table(table_)};
  }
  const attention::LinearPlan& plan() const { return *plan_; }
  /// The only field of a view that may not be there.
  static ConstTensorView read(const std::optional<View>& view, const Frame& frame) {
    return view ? frame.inputs(*view)[0] : ConstTensorView();
  }
  static TensorView written(const std::optional<View>& view, const Frame& frame) {
    return view ? frame.outputs(*view)[0] : TensorView();
  }

 private:
  static attention::LinearShape shape_of(const LinearRun& run, const Preparation& with) {
    const Record& qk = with.record(run.qk);
    return {run.v.rows(),
            run.v.heads(),
            run.qk.heads(),
            qk.fields[0].width,
            with.record(run.v).fields[0].width,
            qk.fields[0].dtype};
  }
  const LinearRun& run_;
  const std::shared_ptr<const attention::LinearPlan> plan_;
  const std::int64_t table_;
};

class PreparedSummarize final : public PreparedRun {
 public:
  PreparedSummarize(const Summarize& step, Preparation& with)
      : PreparedRun(step.dout ? attention::LinearPass::summarize_backward
                              : attention::LinearPass::summarize,
                    step.run, with),
        step_(step) {}
  void run(const Frame& frame) const override {
    plan().summarize({inputs(frame), read(step_.dout, frame), frame.outputs(step_.state)[0],
                      written(step_.transition, frame)},
                     memory(frame), frame.compute());
  }

 private:
  const Summarize& step_;
};

class PreparedSweep final : public PreparedRun {
 public:
  PreparedSweep(const Sweep& step, Preparation& with)
      : PreparedRun(attention::LinearPass::sweep, step.run, with), step_(step) {}
  void run(const Frame& frame) const override {
    plan().sweep({inputs(frame), read(step_.state_in, frame), frame.outputs(step_.out)[0],
                  written(step_.state_out, frame)},
                 memory(frame), frame.compute());
  }

 private:
  const Sweep& step_;
};

class PreparedSweepBackward final : public PreparedRun {
 public:
  PreparedSweepBackward(const SweepBackward& step, Preparation& with)
      : PreparedRun(attention::LinearPass::sweep_backward, step.run, with), step_(step) {}
  void run(const Frame& frame) const override {
    const auto dqk = frame.outputs(step_.gradients.dqk);
    attention::SweepBackwardTensors tensors{inputs(frame),
                                            frame.inputs(step_.gradients.dout)[0],
                                            read(step_.gradients.state_in, frame),
                                            read(step_.gradients.dstate_out, frame),
                                            dqk[0],
                                            dqk[1],
                                            frame.outputs(step_.gradients.dv)[0],
                                            {},
                                            {},
                                            written(step_.gradients.dstate_in, frame)};
    if (step_.gradients.dgate) {
      const auto gate = frame.outputs(*step_.gradients.dgate);
      const attention::Recurrence& of = step_.run.recurrence;
      if (of.decay != Decay::none) tensors.dlog_decay = gate[0];
      if (of.rule == StateRule::delta) tensors.dbeta = gate.back();
    }
    if (step_.gradients.dslopes) {
      tensors.dlog_decay = written(step_.gradients.dslopes, frame);
      if (step_.gradients.dslopes_mode == Mode::write) fill(tensors.dlog_decay, 0, frame.compute());
    }
    plan().sweep_backward(tensors, memory(frame), frame.compute());
  }

 private:
  const SweepBackward& step_;
};

class PreparedFold final : public PreparedStep {
 public:
  explicit PreparedFold(const Fold& step) : step_(step) {}
  void run(const Frame& frame) const override {
    const TensorView out = frame.outputs(step_.out)[0];
    ConstTensorView x = step_.in ? frame.inputs(*step_.in)[0] : ConstTensorView();
    bool any = step_.in.has_value();
    for (const FoldLink& link : step_.links) {
      const ConstTensorView state = frame.inputs(link.state)[0];
      if (link.reset || !any) {
        x = state;
        any = true;
        continue;
      }
      attention::fold(map_of(link, frame), x, state, out, frame.compute());
      x = out;
    }
    if (x.data() != out.data()) copy(x, out, frame.compute());
    if (step_.out_transition) compose(frame);
  }

 private:
  attention::StateMap map_of(const FoldLink& link, const Frame& frame) const {
    attention::StateMap map{step_.way.recurrence, step_.way.transposed, {}, {}, link.tokens};
    if (link.transition) map.transition = frame.inputs(*link.transition)[0];
    if (step_.way.slopes) map.slopes = frame.inputs(*step_.way.slopes)[0];
    return map;
  }
  /// T of all links: T_n .. T_1 where they are applied in order, transposed T_1 .. T_n.
  void compose(const Frame& frame) const {
    const TensorView total = frame.outputs(*step_.out_transition)[0];
    const auto links = std::ssize(step_.links);
    ConstTensorView product;
    for (std::ptrdiff_t i = 0; i < links; ++i) {
      const FoldLink& link =
          step_.links[static_cast<std::size_t>(step_.way.transposed ? i : links - 1 - i)];
      const ConstTensorView own = frame.inputs(*link.transition)[0];
      if (i == 0) {
        product = own;
        continue;
      }
      if (step_.way.recurrence.rule == StateRule::delta) {
        attention::StateMap map = map_of(link, frame);
        map.transposed = true;  // the rows of a product AB are B^T of A's rows
        attention::fold(map, product, {}, total, frame.compute());
      } else {  // logs
        if (i == 1) copy(product, total, frame.compute());
        runtime::accumulate(own, total, frame.compute());
      }
      product = total;
    }
    if (product.data() != total.data()) copy(product, total, frame.compute());
  }
  const Fold& step_;
};

}  // namespace

std::unique_ptr<const PreparedStep> prepare(const Summarize& step, Preparation& with) {
  return std::make_unique<const PreparedSummarize>(step, with);
}
std::unique_ptr<const PreparedStep> prepare(const Fold& step, Preparation&) {
  return std::make_unique<const PreparedFold>(step);
}
std::unique_ptr<const PreparedStep> prepare(const Sweep& step, Preparation& with) {
  return std::make_unique<const PreparedSweep>(step, with);
}
std::unique_ptr<const PreparedStep> prepare(const SweepBackward& step, Preparation& with) {
  return std::make_unique<const PreparedSweepBackward>(step, with);
}

// ---- cost

namespace {
void add_tokens(const LinearRun& run, Count& count) {
  count.recurrence_tokens += run.v.rows() * run.v.heads();
}
}  // namespace

void add_cost(const Summarize& step, const Program&, int, Count& count) {
  add_tokens(step.run, count);
}
void add_cost(const Fold&, const Program&, int, Count&) {}
void add_cost(const Sweep& step, const Program&, int, Count& count) { add_tokens(step.run, count); }
void add_cost(const SweepBackward& step, const Program&, int, Count& count) {
  add_tokens(step.run, count);
}

}  // namespace longhaul::parallel
