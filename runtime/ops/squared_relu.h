#pragma once
// The activation of a feed-forward layer without gates.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// y = max(x, 0)^2. Shapes: contiguous, equal sizes; float32 or bfloat16, one dtype; computed in
/// fp32. Aliasing: none. Source: So et al. 2021 (Primer).
void squared_relu(ConstTensorView x, TensorView y, const Stream& stream);

/// In place: x <- its gradient; dy <- y, in the bits of squared_relu(). Shapes: as there.
void squared_relu_backward(TensorView x, TensorView dy, const Stream& stream);

}  // namespace longhaul::runtime::ops
