#pragma once
// Root-mean-square normalisation.

#include <concepts>

#include "runtime/ops/write.h"
#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// What a norm multiplies by: offset + values, [h] fp32. An offset of 1 is of weights that begin at
/// zero (Gemma's, Qwen3-Next's).
struct NormWeight {
  template <std::convertible_to<ConstTensorView> View>
  NormWeight(const View& view, float offset_of_all = 0) : values(view), offset(offset_of_all) {}

  ConstTensorView values;
  float offset = 0;
};

/// y = x * inv_rms * weight with inv_rms = 1 / sqrt(mean(x^2) + eps) of each row.
/// Shapes: x[rows,h] float32 or bfloat16, weight[h] -> y[rows,h] as x, inv_rms[rows] fp32.
/// Aliasing: none. Source: Zhang and Sennrich 2019 (RMSNorm).
void rms_norm(ConstTensorView x, const NormWeight& weight, double eps, TensorView y,
              TensorView inv_rms, const Stream& stream);

/// inv_rms alone, bit for bit what rms_norm gives.
void inverse_rms(ConstTensorView x, double eps, TensorView inv_rms, const Stream& stream);

/// y again, from a saved inv_rms: bit for bit what rms_norm gave.
void rms_norm_apply(ConstTensorView x, const NormWeight& weight, ConstTensorView inv_rms,
                    TensorView y, const Stream& stream);

struct RmsNormBackwardInputs {
  ConstTensorView x;        ///< [rows,h] float32 or bfloat16
  NormWeight weight;        ///< [h]
  ConstTensorView inv_rms;  ///< [rows] fp32, from the forward
  ConstTensorView dy;       ///< [rows,h] fp32
};
/// dx[rows,h] (dtype of x) is overwritten or added to, as `write_dx` says; dweight[h] fp32 is added
/// to. dweight sums rows in order, in double: the same bits whatever the number of threads.
void rms_norm_backward(const RmsNormBackwardInputs& inputs, TensorView dx, Write write_dx,
                       TensorView dweight, const Stream& stream);

}  // namespace longhaul::runtime::ops
