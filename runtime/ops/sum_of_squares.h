#pragma once
// Squared Euclidean norm.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// result = sum of values[i]^2, in double over fixed chunks added in order: the same bits whatever
/// the number of threads. Shapes: values[n] fp32 contiguous -> result[1] float64, overwritten.
void sum_of_squares(ConstTensorView values, TensorView result, const Stream& stream);

}  // namespace longhaul::runtime::ops
