#pragma once
// The gated activation of Llama's feed-forward layer.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// y = silu(gate) * up, silu(g) = g / (1 + e^-g).
/// Shapes: gate, up, y [rows,f] float32 or bfloat16, one dtype; computed in fp32. y may be gate or
/// up. Source: Shazeer 2020 (GLU variants).
void swiglu(ConstTensorView gate, ConstTensorView up, TensorView y, const Stream& stream);

/// dgate = dy * up * silu'(gate), dup = dy * silu(gate). All [rows,f], one dtype.
/// Aliasing: dgate or dup may be dy; neither may be gate or up.
void swiglu_backward(ConstTensorView gate, ConstTensorView up, ConstTensorView dy, TensorView dgate,
                     TensorView dup, const Stream& stream);

}  // namespace longhaul::runtime::ops
