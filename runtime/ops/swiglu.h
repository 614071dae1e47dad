#pragma once
// The gated activation of Llama's feed-forward layer.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// y = silu(gate) * up, silu(g) = g / (1 + e^-g).
/// Shapes: gate_up[rows,2f], a row's gates before its ups -> y[rows,f]; float32 or bfloat16, one
/// dtype; computed in fp32. Aliasing: none. Source: Shazeer 2020 (GLU variants).
void swiglu(ConstTensorView gate_up, TensorView y, const Stream& stream);

/// In place: gate_up <- its gradients, dgate = dy * up * silu'(gate) and dup = dy * silu(gate); dy
/// <- y, in the bits of swiglu(). Shapes: gate_up[rows,2f], dy[rows,f], as there.
void swiglu_backward(TensorView gate_up, TensorView dy, const Stream& stream);

}  // namespace longhaul::runtime::ops
