#pragma once
// Root-mean-square normalisation in groups, with a gate: what the output of a recurrence passes.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

enum class GateActivation : unsigned char {
  none,  ///< there is no gate
  silu,
  sigmoid
};

/// norm(h) = h / sqrt(mean(h^2) + eps) * weight, the mean over a group of neighbours in the row:
///   gate after:  y = norm(x) * activation(gate)     Gated DeltaNet, KDA, Lightning
///   gate before: y = norm(x * activation(gate))     Mamba-2
struct GatedNorm {
  GateActivation activation = GateActivation::silu;
  bool gate_first = false;
  std::int64_t group = 0;  ///< elements; divides the row
  double eps = 1e-6;
};

/// Shapes: x[n,w] fp32, gate[n,w] float32 or bfloat16 (no data without one), weight[m] fp32, a
/// multiple of the group that divides w: column c takes weight[c mod m] -> y[n,w] float32 or
/// bfloat16, as gate. Aliasing: none. Throws: Error on a shape or dtype mismatch; Error(config) on
/// CUDA, which has no kernel. Source: Dao and Gu 2024 (Mamba-2); Yang et al. 2025 (Gated DeltaNet).
void gated_norm(const GatedNorm& norm, ConstTensorView x, ConstTensorView gate,
                ConstTensorView weight, TensorView y, const Stream& stream);

struct GatedNormBackwardInputs {
  ConstTensorView x, gate, weight;  ///< forward's
  ConstTensorView dy;               ///< [n,w] fp32
};
/// dx[n,w] and dgate[n,w] (no data without a gate), both in the dtype of forward's y, are
/// overwritten; dweight[m] fp32 is added to, rows summed in order and in double: the same bits
/// whatever the number of threads. Takes n w/group floats of the stream's memory for a while.
void gated_norm_backward(const GatedNorm& norm, const GatedNormBackwardInputs& inputs,
                         TensorView dx, TensorView dgate, TensorView dweight, const Stream& stream);

}  // namespace longhaul::runtime::ops
