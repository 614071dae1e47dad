#pragma once
// Rows of length one: the queries and keys of delta-rule layers.

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

constexpr double kL2NormEps = 1e-6;  ///< of the published layers

/// y = x / sqrt(sum(x^2) + eps) of each row and head: of the sum, not the mean.
/// Shapes: x[n,H,D] float32 or bfloat16 -> y[n,H,D] as x; both may be strided in rows and heads.
/// Aliasing: none. Throws: Error on a shape or dtype mismatch; Error(config) on CUDA, which has no
/// kernel. Source: Yang et al. 2025 (Gated DeltaNet).
void l2_norm(ConstTensorView x, double eps, TensorView y, const Stream& stream);

/// dx = (dy - y (y . dy)) / sqrt(sum(x^2) + eps), y in fp32 from x again.
/// Shapes: x[n,H,D] as there, dy[n,H,D] fp32 -> dx[n,H,D] as x; each may be strided in rows and
/// heads.
void l2_norm_backward(ConstTensorView x, ConstTensorView dy, double eps, TensorView dx,
                      const Stream& stream);

}  // namespace longhaul::runtime::ops
