#pragma once
// Casts, threaded.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// dst <- src between float32 and bfloat16 (round to nearest even). Equal element counts,
/// contiguous.
void cast(ConstTensorView src, TensorView dst, const Stream& stream);

}  // namespace longhaul::runtime::ops
