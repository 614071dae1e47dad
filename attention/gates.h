#pragma once
// From a layer's projections to what a recurrence takes: log decays and beta, in fp32.

#include <limits>

#include "runtime/tensor.h"

namespace longhaul::attention {

enum class DecayForm : unsigned char {
  softplus,    ///< -exp(A_log) step, step = softplus(x + bias): Gated DeltaNet, KDA, Mamba-2
  bounded,     ///< lower_bound sigmoid(exp(A_log) (x + bias)): KDA, with gates that stay above it
  log_sigmoid  ///< logsigmoid(x + bias) / divisor: GLA, simple-GLA; no A_log
};

/// How a log decay follows from a projection.
struct DecayGate {
  DecayForm form = DecayForm::softplus;
  /// softplus: a step is clamped to these, Mamba-2's time_step_limit; outside its slope is 0.
  double min_step = 0, max_step = std::numeric_limits<double>::infinity();
  double lower_bound = -5;  ///< bounded
  double divisor = 16;      ///< log_sigmoid
};

/// What the gate learns: a_log[H] (no data: log_sigmoid), bias[H,W] ("dt_bias"), fp32.
struct DecayParameters {
  runtime::ConstTensorView a_log, bias;
};

/// Shapes: x[n,H,W] float32 or bfloat16, W numbers a head (1: a scalar decay, D: a vector) ->
/// log_decay[n,H,W] fp32, never positive; time_step[n,H,W] fp32, the clamped softplus (form
/// softplus; no data: not wanted). Contiguous. Aliasing: none. Throws: Error on a shape or dtype
/// mismatch; Error(config) on CUDA, which has no kernel. Source: Dao and Gu 2024 (Mamba-2), Yang et
/// al. 2024 (GLA), 2025 (Gated DeltaNet), Kimi Team 2025 (KDA).
void decay_gate(const DecayGate& gate, runtime::ConstTensorView x,
                const DecayParameters& parameters, runtime::TensorView log_decay,
                runtime::TensorView time_step, const runtime::Stream& stream);

struct DecayGateGradients {
  runtime::TensorView dx;             ///< [n,H,W] float32 or bfloat16, overwritten
  runtime::TensorView da_log, dbias;  ///< in the parameters' shapes, fp32, added to
};
/// dlog_decay, dtime_step[n,H,W] fp32 (no data: nothing took the steps). Rows are summed in order
/// and in double: the same bits whatever the number of threads.
void decay_gate_backward(const DecayGate& gate, runtime::ConstTensorView x,
                         const DecayParameters& parameters, runtime::ConstTensorView dlog_decay,
                         runtime::ConstTensorView dtime_step, const DecayGateGradients& gradients,
                         const runtime::Stream& stream);

/// beta = factor sigmoid(x): factor 1, or 2 where a delta rule may have negative eigenvalues.
/// Shapes: x[n,H] float32 or bfloat16 -> beta[n,H] fp32. Otherwise as decay_gate().
void beta_gate(runtime::ConstTensorView x, double factor, runtime::TensorView beta,
               const runtime::Stream& stream);
/// dbeta[n,H] fp32 -> dx[n,H] float32 or bfloat16.
void beta_gate_backward(runtime::ConstTensorView x, double factor, runtime::ConstTensorView dbeta,
                        runtime::TensorView dx, const runtime::Stream& stream);

}  // namespace longhaul::attention
