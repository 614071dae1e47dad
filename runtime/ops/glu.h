#pragma once
// The gated activations of feed-forward layers. Source: Shazeer 2020 (GLU variants).

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// What a gate g becomes.
enum class Glu : unsigned char {
  swiglu,  ///< silu(g) = g / (1 + e^-g)
  geglu    ///< gelu(g) by tanh: g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3)))
};

/// y = f(gate) * up.
/// Shapes: gate_up[rows,2f], a row's gates before its ups -> y[rows,f]; float32 or bfloat16, one
/// dtype; computed in fp32. Aliasing: none.
void glu(Glu kind, ConstTensorView gate_up, TensorView y, const Stream& stream);

/// In place: gate_up <- its gradients, dgate = dy * up * f'(gate) and dup = dy * f(gate); dy <- y,
/// in the bits of glu(). Shapes: gate_up[rows,2f], dy[rows,f], as there.
void glu_backward(Glu kind, TensorView gate_up, TensorView dy, const Stream& stream);

}  // namespace longhaul::runtime::ops
