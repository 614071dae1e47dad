#pragma once
// A bound on logits.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// x <- cap tanh(x / cap). Shapes: contiguous, float32; cap > 0. Its derivative is that of
/// LogitsGradient::softcap (cross_entropy.h). Source: Gemma 2 (Gemma Team 2024).
void softcap(TensorView x, double cap, const Stream& stream);

}  // namespace longhaul::runtime::ops
