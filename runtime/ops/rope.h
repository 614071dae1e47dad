#pragma once
// Rotary position embedding.

#include <span>

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

/// factor * cos and factor * sin of position * frequencies[i], i < R/2, computed in double: exact
/// to fp32 at any position. Shapes: positions[rows] int32 or int64 -> cosines[rows,R/2],
/// sines[rows,R/2] fp32.
void rope_table(ConstTensorView positions, std::span<const double> frequencies, double factor,
                TensorView cosines, TensorView sines, const Stream& stream);

enum class Rotation : unsigned char {
  forward,
  inverse  ///< the adjoint: gradients of rotated values -> gradients of the values
};

/// y <- x with each pair (i, i + R/2), i < R/2, of every head turned by its row's angle i ("rotate
/// half", the convention of Hugging Face's Llama weights) and scaled by the table's factor; dims
/// from R on stay as they are.
/// Computed in fp32, rounded once. Shapes: x[rows,heads,D] float32 or bfloat16 -> y same, of either
/// dtype; rows may lie apart in each (a slice of heads); tables [rows,R/2] fp32, contiguous, R <=
/// D. Aliasing: y may be x. Source: Su et al. 2021 (RoFormer).
void rope(ConstTensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
          TensorView y, const Stream& stream);

}  // namespace longhaul::runtime::ops
