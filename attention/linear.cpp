#include "attention/linear.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "attention/block_check_impl.h"
#include "attention/linear_impl.h"
#include "attention/own_memory_impl.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using detail::check;
using detail::OwnMemory;
using runtime::ConstTensorView;
using runtime::DeviceKind;
using runtime::DType;
using runtime::ExitCode;
using runtime::fail;
using runtime::Stream;
using runtime::TensorView;

struct Kind {
  const char* name;
  StateRule rule;
  Decay decay;
};
constexpr std::array kKinds{Kind{"linear", StateRule::sum, Decay::none},
                            Kind{"decay", StateRule::sum, Decay::head},
                            Kind{"scalar", StateRule::sum, Decay::scalar},
                            Kind{"vector", StateRule::sum, Decay::vector},
                            Kind{"delta", StateRule::delta, Decay::none},
                            Kind{"gated_delta", StateRule::delta, Decay::scalar},
                            Kind{"kda", StateRule::delta, Decay::vector}};

const Kind* find_kind(StateRule rule, Decay decay) {
  const auto* found = std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& kind) {
    return kind.rule == rule && kind.decay == decay;
  });
  return found == kKinds.end() ? nullptr : found;
}

bool delta(const Recurrence& recurrence) { return recurrence.rule == StateRule::delta; }

void check_recurrence(const Recurrence& r) {
  if (find_kind(r.rule, r.decay) == nullptr)
    fail(ExitCode::config, "the delta rule with a constant decay a head is no kind of recurrence");
  if (!r.causal && (r.rule != StateRule::sum || r.decay != Decay::none)) {
    fail(ExitCode::config, "kind ", kind_of(r),
         " is causal; only linear attention can read the whole sequence");
  }
  if (!std::isfinite(r.scale)) fail(ExitCode::config, "scale is ", r.scale);
}

void check_shape(const LinearShape& s) {
  if (s.activation != DType::float32 && s.activation != DType::bfloat16) {
    fail(ExitCode::config, "the activation dtype is ", name(s.activation),
         "; expected float32 or bfloat16");
  }
  if (s.key_heads == 0 ? s.heads != 0 : s.heads % s.key_heads != 0)
    fail(ExitCode::config, s.heads, " heads are no multiple of ", s.key_heads, " key heads");
}

void check_starts(const std::vector<std::int64_t>& starts, const Recurrence& recurrence,
                  std::int64_t rows) {
  std::int64_t before = -1;
  for (const std::int64_t start : starts) {
    if (start <= before || start >= rows) {
      fail(ExitCode::config, "a document begins at row ", start, " after ", before, " in a run of ",
           rows, " rows; expected rising rows of the run");
    }
    before = start;
  }
  if (!recurrence.causal && !starts.empty()) {
    fail(ExitCode::config, "linear attention over the whole sequence was given ", starts.size(),
         " documents; only causal recurrences keep documents apart");
  }
}

/// A tensor that the recurrence has, and otherwise no data.
void check_if(bool wanted, const char* what, const ConstTensorView& view,
              std::initializer_list<std::int64_t> sizes, const Stream& stream) {
  if (wanted) return check(what, view, sizes, DType::float32, stream);
  LONGHAUL_CHECK(view.data() == nullptr, what, " is given, of ", view.elements(),
                 " elements; this recurrence has none: expected an empty view");
}

/// A tensor that the caller may leave out.
void check_given(const char* what, const ConstTensorView& view,
                 std::initializer_list<std::int64_t> sizes, const Stream& stream) {
  if (view.data() != nullptr) check(what, view, sizes, DType::float32, stream);
}

void check_log_decay(const char* what, const ConstTensorView& view, const LinearPlan& plan,
                     const Stream& stream) {
  const LinearShape& s = plan.shape();
  const Decay decay = plan.recurrence().decay;
  if (decay == Decay::vector)
    return check(what, view, {s.rows, s.heads, s.dim}, DType::float32, stream);
  check_if(decay != Decay::none, what, view, {decay == Decay::head ? 1 : s.rows, s.heads}, stream);
}

struct Uses {
  bool q, v;
};
void check_inputs(const LinearInputs& in, Uses uses, const LinearPlan& plan, LinearPass pass,
                  const Stream& stream) {
  const LinearShape& s = plan.shape();
  const BlockPlace& place = plan.place();
  LONGHAUL_CHECK(plan.pass() == pass, "a linear plan was run for another pass than its own");
  LONGHAUL_CHECK(!place.sizes_only, "a plan of sizes alone was run");
  LONGHAUL_CHECK(stream.device() == place.device && stream.threads() == place.threads,
                 "a linear call planned for ", place.threads, " threads of ",
                 to_string(place.device), " on stream '", stream.name(), "' of ", stream.threads(),
                 " threads of ", to_string(stream.device()));
  if (uses.q) check("q", in.q, {s.rows, s.key_heads, s.dim}, s.activation, stream);
  check("k", in.k, {s.rows, s.key_heads, s.dim}, s.activation, stream);
  if (uses.v) check("v", in.v, {s.rows, s.heads, s.value_dim}, s.activation, stream);
  check_log_decay("log_decay", in.log_decay, plan, stream);
  check_if(delta(plan.recurrence()), "beta", in.beta, {s.rows, s.heads}, stream);
}

}  // namespace

std::span<const char* const> recurrence_kinds() {
  static const auto names = [] {
    std::array<const char*, kKinds.size()> list{};
    std::transform(kKinds.begin(), kKinds.end(), list.begin(),
                   [](const Kind& kind) { return kind.name; });
    return list;
  }();
  return names;
}

Recurrence recurrence_of_kind(const std::string& name) {
  std::string names;
  for (const Kind& kind : kKinds) {
    if (name == kind.name) return {.rule = kind.rule, .decay = kind.decay};
    names += (names.empty() ? "" : ", ") + std::string(kind.name);
  }
  fail(ExitCode::config, "'", name, "' is no kind of linear attention; expected one of ", names);
}

const char* kind_of(const Recurrence& recurrence) {
  const Kind* kind = find_kind(recurrence.rule, recurrence.decay);
  LONGHAUL_CHECK(kind != nullptr, "the delta rule with a constant decay a head has no name");
  return kind->name;
}

std::int64_t transition_width(const Recurrence& recurrence, std::int64_t dim) {
  if (delta(recurrence) || recurrence.decay == Decay::vector) return dim;
  return recurrence.decay == Decay::scalar ? 1 : 0;
}
std::int64_t transition_rows(const Recurrence& recurrence, std::int64_t dim) {
  return delta(recurrence) ? dim : 1;
}

void LinearPlan::summarize(const SummarizeTensors& t, const BlockMemory& memory,
                           const Stream& stream) const {
  const bool backward = pass() == LinearPass::summarize_backward;
  const LinearShape& s = shape();
  check_inputs(t.inputs, {.q = backward, .v = !backward}, *this,
               backward ? LinearPass::summarize_backward : LinearPass::summarize, stream);
  if (backward) check("dout", t.dout, {s.rows, s.heads, s.value_dim}, s.activation, stream);
  check("the state", t.state, {s.value_dim, s.heads, s.dim}, DType::float32, stream);
  const std::int64_t width = transition_width(recurrence(), s.dim);
  if (t.transition.data() != nullptr) {
    LONGHAUL_CHECK(!backward && width > 0 && starts().empty(), "a transition is asked for ",
                   backward    ? "backward, where it is the forward one"
                   : width > 0 ? "of a run in which a document begins"
                               : "where it is known");
    check("the transition", t.transition, {transition_rows(recurrence(), s.dim), s.heads, width},
          DType::float32, stream);
  }
  run(t, memory, stream);
}

void LinearPlan::sweep(const SweepTensors& t, const BlockMemory& memory,
                       const Stream& stream) const {
  const LinearShape& s = shape();
  check_inputs(t.inputs, {.q = true, .v = true}, *this, LinearPass::sweep, stream);
  check_given("state_in", t.state_in, {s.value_dim, s.heads, s.dim}, stream);
  check("out", t.out, {s.rows, s.heads, s.value_dim}, DType::float32, stream);
  check_given("state_out", t.state_out, {s.value_dim, s.heads, s.dim}, stream);
  run(t, memory, stream);
}

void LinearPlan::sweep_backward(const SweepBackwardTensors& t, const BlockMemory& memory,
                                const Stream& stream) const {
  const LinearShape& s = shape();
  check_inputs(t.inputs, {.q = true, .v = true}, *this, LinearPass::sweep_backward, stream);
  check("dout", t.dout, {s.rows, s.heads, s.value_dim}, s.activation, stream);
  check_given("state_in", t.state_in, {s.value_dim, s.heads, s.dim}, stream);
  check_given("dstate_out", t.dstate_out, {s.value_dim, s.heads, s.dim}, stream);
  check("dq", t.dq, {s.rows, s.key_heads, s.dim}, DType::float32, stream);
  check("dk", t.dk, {s.rows, s.key_heads, s.dim}, DType::float32, stream);
  check("dv", t.dv, {s.rows, s.heads, s.value_dim}, DType::float32, stream);
  if (recurrence().decay != Decay::head || t.dlog_decay.data() != nullptr)
    check_log_decay("dlog_decay", t.dlog_decay, *this, stream);
  check_if(delta(recurrence()), "dbeta", t.dbeta, {s.rows, s.heads}, stream);
  check_given("dstate_in", t.dstate_in, {s.value_dim, s.heads, s.dim}, stream);
  run(t, memory, stream);
}

void LinearPlan::run(const SummarizeTensors&, const BlockMemory&, const Stream&) const {
  fail(ExitCode::internal, "this plan summarizes nothing");
}
void LinearPlan::run(const SweepTensors&, const BlockMemory&, const Stream&) const {
  fail(ExitCode::internal, "this plan has no sweep");
}
void LinearPlan::run(const SweepBackwardTensors&, const BlockMemory&, const Stream&) const {
  fail(ExitCode::internal, "this plan has no backward sweep");
}

std::shared_ptr<const LinearPlan> plan_linear(LinearPass pass, const LinearShape& shape,
                                              const Recurrence& recurrence,
                                              std::vector<std::int64_t> starts,
                                              const BlockPlace& place) {
  check_recurrence(recurrence);
  check_shape(shape);
  check_starts(starts, recurrence, shape.rows);
  const auto make = place.device.kind == DeviceKind::cuda ? detail::make_cuda_linear_plan
                                                          : detail::make_cpu_linear_plan;
  return make(pass, shape, recurrence, std::move(starts), place);
}

void run_once(const std::shared_ptr<const LinearPlan>& plan, const SummarizeTensors& tensors,
              const Stream& stream) {
  const OwnMemory own(*plan, stream);
  plan->summarize(tensors, own.memory, stream);
}
void run_once(const std::shared_ptr<const LinearPlan>& plan, const SweepTensors& tensors,
              const Stream& stream) {
  const OwnMemory own(*plan, stream);
  plan->sweep(tensors, own.memory, stream);
}
void run_once(const std::shared_ptr<const LinearPlan>& plan, const SweepBackwardTensors& tensors,
              const Stream& stream) {
  const OwnMemory own(*plan, stream);
  plan->sweep_backward(tensors, own.memory, stream);
}

void fold(const StateMap& how, ConstTensorView in, ConstTensorView addend, TensorView out,
          const Stream& stream) {
  check_recurrence(how.recurrence);
  LONGHAUL_CHECK(out.dims() == 3, "the folded state has ", out.dims(),
                 " dims; expected rows, heads, dim");
  const std::int64_t rows = out.size(0), heads = out.size(1), dim = out.size(2);
  check("the folded state", out, {rows, heads, dim}, DType::float32, stream);
  check("the state", in, {rows, heads, dim}, DType::float32, stream);
  check_given("the addend", addend, {rows, heads, dim}, stream);
  const std::int64_t width = transition_width(how.recurrence, dim);
  check_if(width > 0, "the transition", how.transition,
           {transition_rows(how.recurrence, dim), heads, width}, stream);
  check_if(how.recurrence.decay == Decay::head, "the slopes", how.slopes, {1, heads}, stream);
  LONGHAUL_CHECK(how.tokens >= 0, "a run of ", how.tokens, " tokens");
  const bool cuda = stream.device().kind == DeviceKind::cuda;
  (cuda ? detail::cuda_fold : detail::cpu_fold)(how, in, addend, out, stream);
}

}  // namespace longhaul::attention
