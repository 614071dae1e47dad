#pragma once
// Multiples of tensors.

#include "runtime/ops/write.h"
#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// y = factor * x, or y + factor * x, in fp32. Shapes: contiguous, equal sizes, each float32 or
/// bfloat16. Aliasing: y may be x.
void scaled(ConstTensorView x, double factor, Write write, TensorView y, const Stream& stream);

}  // namespace longhaul::runtime::ops
