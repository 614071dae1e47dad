#pragma once
// One AdamW update of a range of parameters.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

struct AdamWFactors {
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;  ///< decoupled: value shrinks by lr * weight_decay
  std::int64_t step = 1;    ///< from 1: corrects the moments' bias
};

/// What an update changes: [n] each.
struct AdamWState {
  TensorView value, first_moment, second_moment;  ///< fp32
  /// When it has data: bfloat16 <- the new value, rounded as cast() rounds. What it held is not
  /// read.
  TensorView rounded = {};
};

/// g = gradient * gradient_factor; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
/// value = value (1 - lr wd) - lr (m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + eps).
/// Shapes: gradient[n] fp32, contiguous as the state is; gradient_factor[1] float64 is read on the
/// stream (gradient clipping: clip_factor()). Where it is not finite, nothing is touched. Aliasing:
/// none. Throws: Error on a shape or dtype mismatch. Source: Loshchilov and Hutter 2019 (AdamW).
void adamw(const AdamWFactors& factors, ConstTensorView gradient, ConstTensorView gradient_factor,
           const AdamWState& state, const Stream& stream);

}  // namespace longhaul::runtime::ops
