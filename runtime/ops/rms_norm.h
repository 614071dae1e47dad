#pragma once
// Root-mean-square normalisation.

#include "runtime/ops/write.h"
#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// y = x * inv_rms * weight with inv_rms = 1 / sqrt(mean(x^2) + eps) of each row.
/// Shapes: x[rows,h] float32 or bfloat16, weight[h] fp32 -> y[rows,h] as x, inv_rms[rows] fp32.
/// Aliasing: none. Source: Zhang and Sennrich 2019 (RMSNorm).
void rms_norm(ConstTensorView x, ConstTensorView weight, double eps, TensorView y,
              TensorView inv_rms, const Stream& stream);

/// y again, from a saved inv_rms: bit for bit what rms_norm gave.
void rms_norm_apply(ConstTensorView x, ConstTensorView weight, ConstTensorView inv_rms,
                    TensorView y, const Stream& stream);

struct RmsNormBackwardInputs {
  ConstTensorView x;        ///< [rows,h] float32 or bfloat16
  ConstTensorView weight;   ///< [h] fp32
  ConstTensorView inv_rms;  ///< [rows] fp32, from the forward
  ConstTensorView dy;       ///< [rows,h] fp32
};
/// dx[rows,h] (dtype of x) is overwritten or added to, as `write_dx` says; dweight[h] fp32 is added
/// to. dweight sums rows in order, in double: the same bits whatever the number of threads.
void rms_norm_backward(const RmsNormBackwardInputs& inputs, TensorView dx, Write write_dx,
                       TensorView dweight, const Stream& stream);

}  // namespace longhaul::runtime::ops
