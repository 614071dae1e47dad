#pragma once
// Residual additions and casts, threaded.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// sum = a + b, in fp32, rounded to the dtype. Equal sizes, contiguous, float32 or bfloat16 each.
/// Aliasing: sum may be a or b.
void add(ConstTensorView a, ConstTensorView b, TensorView sum, const Stream& stream);

/// dst <- src between float32 and bfloat16 (round to nearest even). Equal element counts,
/// contiguous.
void cast(ConstTensorView src, TensorView dst, const Stream& stream);

}  // namespace longhaul::runtime::ops
