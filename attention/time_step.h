#pragma once
// How a state space of Mamba-2 becomes a recurrence of the sum rule: values dt x, and the skip D x.

#include "runtime/tensor.h"

namespace longhaul::attention {

/// v = time_step x.
/// Shapes: x[n,H,E] float32 or bfloat16, strided in rows and heads; time_step[n,H] fp32 ->
/// v[n,H,E] as x, contiguous. Aliasing: none. Throws: Error on a shape or dtype mismatch;
/// Error(config) on CUDA, which has no kernel. Source: Dao and Gu 2024 (Mamba-2).
void scale_by_step(runtime::ConstTensorView x, runtime::ConstTensorView time_step,
                   runtime::TensorView v, const runtime::Stream& stream);

/// y += D x, D[H] fp32, y[n,H,E] fp32, contiguous; otherwise as there.
void add_skip(runtime::ConstTensorView x, runtime::ConstTensorView d, runtime::TensorView y,
              const runtime::Stream& stream);

struct TimeStepBackwardInputs {
  runtime::ConstTensorView x, time_step, d;  ///< forward's
  runtime::ConstTensorView dv;               ///< [n,H,E] fp32
  runtime::ConstTensorView dy;               ///< [n,H,E] in the dtype of x
};
/// Both at once: dx = time_step dv + D dy, [n,H,E] as x, strided in rows and heads;
/// dtime_step[n,H] fp32 = x . dv; both overwritten. dd[H] fp32, the sum of x . dy, is added to:
/// rows in order and in double, the same bits whatever the number of threads.
void time_step_backward(const TimeStepBackwardInputs& inputs, runtime::TensorView dx,
                        runtime::TensorView dtime_step, runtime::TensorView dd,
                        const runtime::Stream& stream);

}  // namespace longhaul::attention
