#pragma once
// A gate between 0 and 1 on an output.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// y = x * sigmoid(gate). Shapes: contiguous, equal sizes; float32 or bfloat16, one dtype; computed
/// in fp32. Aliasing: none. Source: Qiu et al. 2025 (Gated Attention for Large Language Models).
void sigmoid_gate(ConstTensorView x, ConstTensorView gate, TensorView y, const Stream& stream);

/// In place: gate <- its gradient, dy <- the gradient of x. Shapes: as there.
void sigmoid_gate_backward(ConstTensorView x, TensorView gate, TensorView dy, const Stream& stream);

}  // namespace longhaul::runtime::ops
