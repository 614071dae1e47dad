#include "attention/gates.h"

#include "attention/token_ops_impl.h"
#include "runtime/ops/checks.h"
#include "runtime/require_cpu.h"

namespace longhaul::attention {
namespace {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::detail::require_dtype;
using runtime::ops::detail::require_shape;

void check(const char* op, const DecayGate& gate, const ConstTensorView& x,
           const DecayParameters& parameters, const char* what, const ConstTensorView& decay) {
  LONGHAUL_CHECK(x.dims() == 3, op, ": x has ", x.dims(), " dims; expected [n, H, W]");
  require_shape(op, "x", x, {x.size(0), x.size(1), x.size(2)});
  require_shape(op, "bias", parameters.bias, {x.size(1), x.size(2)});
  require_dtype(op, "bias", parameters.bias, {DType::float32});
  require_shape(op, what, decay, {x.size(0), x.size(1), x.size(2)});
  require_dtype(op, what, decay, {DType::float32});
  if (gate.form == DecayForm::log_sigmoid) {
    LONGHAUL_CHECK(gate.divisor > 0, op, ": the divisor is ", gate.divisor,
                   "; expected a positive number");
    return;
  }
  require_shape(op, "a_log", parameters.a_log, {x.size(1)});
  require_dtype(op, "a_log", parameters.a_log, {DType::float32});
  LONGHAUL_CHECK(gate.form != DecayForm::bounded || gate.lower_bound < 0, op,
                 ": the lower bound is ", gate.lower_bound, "; expected a negative number");
  LONGHAUL_CHECK(0 <= gate.min_step && gate.min_step <= gate.max_step, op,
                 ": time steps are clamped to [", gate.min_step, ", ", gate.max_step,
                 "]; expected 0 <= least <= largest");
}

void check_steps(const char* op, const DecayGate& gate, const ConstTensorView& x, const char* what,
                 const ConstTensorView& steps) {
  if (steps.data() == nullptr) return;
  LONGHAUL_CHECK(gate.form == DecayForm::softplus, op, ": only a softplus gives time steps");
  require_shape(op, what, steps, {x.size(0), x.size(1), x.size(2)});
  require_dtype(op, what, steps, {DType::float32});
}

void check_beta(const char* op, const ConstTensorView& x, const char* what,
                const ConstTensorView& beta) {
  LONGHAUL_CHECK(x.dims() == 2, op, ": x has ", x.dims(), " dims; expected [n, H]");
  require_shape(op, "x", x, {x.size(0), x.size(1)});
  require_shape(op, what, beta, {x.size(0), x.size(1)});
  require_dtype(op, what, beta, {DType::float32});
}

}  // namespace

void decay_gate(const DecayGate& gate, ConstTensorView x, const DecayParameters& parameters,
                TensorView log_decay, TensorView time_step, const Stream& stream) {
  check("decay_gate", gate, x, parameters, "log_decay", log_decay);
  check_steps("decay_gate", gate, x, "time_step", time_step);
  runtime::require_cpu("decay_gate", stream);
  detail::cpu_decay_gate(gate, x, parameters, log_decay, time_step, stream);
}

void decay_gate_backward(const DecayGate& gate, ConstTensorView x,
                         const DecayParameters& parameters, ConstTensorView dlog_decay,
                         ConstTensorView dtime_step, const DecayGateGradients& gradients,
                         const Stream& stream) {
  const char* op = "decay_gate_backward";
  check(op, gate, x, parameters, "dlog_decay", dlog_decay);
  check_steps(op, gate, x, "dtime_step", dtime_step);
  require_shape(op, "dx", gradients.dx, {x.size(0), x.size(1), x.size(2)});
  require_shape(op, "dbias", gradients.dbias, {x.size(1), x.size(2)});
  if (gate.form != DecayForm::log_sigmoid)
    require_shape(op, "da_log", gradients.da_log, {x.size(1)});
  runtime::require_cpu(op, stream);
  detail::cpu_decay_gate_backward(gate, x, parameters, dlog_decay, dtime_step, gradients, stream);
}

void beta_gate(ConstTensorView x, double factor, TensorView beta, const Stream& stream) {
  check_beta("beta_gate", x, "beta", beta);
  runtime::require_cpu("beta_gate", stream);
  detail::cpu_beta_gate(x, factor, beta, stream);
}

void beta_gate_backward(ConstTensorView x, double factor, ConstTensorView dbeta, TensorView dx,
                        const Stream& stream) {
  check_beta("beta_gate_backward", x, "dbeta", dbeta);
  require_shape("beta_gate_backward", "dx", dx, {x.size(0), x.size(1)});
  runtime::require_cpu("beta_gate_backward", stream);
  detail::cpu_beta_gate_backward(x, factor, dbeta, dx, stream);
}

}  // namespace longhaul::attention
