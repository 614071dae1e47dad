#pragma once
// Private to attention/: what the operations on single tokens around a recurrence (gates, time
// steps, the normaliser) call after their checks. Every function only enqueues; sizes may be zero.

#include "attention/gates.h"
#include "attention/normaliser.h"
#include "attention/time_step.h"

namespace longhaul::attention::detail {

void cpu_decay_gate(const DecayGate& gate, runtime::ConstTensorView x,
                    const DecayParameters& parameters, runtime::TensorView log_decay,
                    runtime::TensorView time_step, const runtime::Stream& stream);
void cpu_decay_gate_backward(const DecayGate& gate, runtime::ConstTensorView x,
                             const DecayParameters& parameters, runtime::ConstTensorView dlog_decay,
                             runtime::ConstTensorView dtime_step,
                             const DecayGateGradients& gradients, const runtime::Stream& stream);
void cpu_beta_gate(runtime::ConstTensorView x, double factor, runtime::TensorView beta,
                   const runtime::Stream& stream);
void cpu_beta_gate_backward(runtime::ConstTensorView x, double factor,
                            runtime::ConstTensorView dbeta, runtime::TensorView dx,
                            const runtime::Stream& stream);

void cpu_scale_by_step(runtime::ConstTensorView x, runtime::ConstTensorView time_step,
                       runtime::TensorView v, const runtime::Stream& stream);
void cpu_add_skip(runtime::ConstTensorView x, runtime::ConstTensorView d, runtime::TensorView y,
                  const runtime::Stream& stream);
void cpu_time_step_backward(const TimeStepBackwardInputs& inputs, runtime::TensorView dx,
                            runtime::TensorView dtime_step, runtime::TensorView dd,
                            const runtime::Stream& stream);

void cpu_append_ones(runtime::ConstTensorView v, runtime::TensorView extended,
                     const runtime::Stream& stream);
void cpu_normalise(runtime::ConstTensorView extended, runtime::TensorView out,
                   const runtime::Stream& stream);
void cpu_normalise_backward(runtime::ConstTensorView extended, runtime::ConstTensorView dout,
                            runtime::TensorView dextended, const runtime::Stream& stream);

}  // namespace longhaul::attention::detail
