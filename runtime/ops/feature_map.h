#pragma once
// Feature maps of linear attention: what queries and keys pass before their product.

#include <span>
#include <string>

#include "runtime/tensor.h"

namespace longhaul::runtime::ops {

enum class FeatureMap : unsigned char {
  identity,
  relu,
  silu,  ///< x / (1 + e^-x)
  elu1   ///< elu(x) + 1: x + 1 above 0, e^x below
};

/// {"identity", "relu", "silu", "elu1"}.
std::span<const char* const> feature_map_names();
/// Throws Error(config) listing the names.
FeatureMap feature_map_of(const std::string& name);

/// y = map(x), element by element.
/// Shapes: x[n,H,D] float32 or bfloat16 -> y[n,H,D] as x; both may be strided in rows and heads.
/// Aliasing: y may be x. Throws: Error on a shape or dtype mismatch; Error(config) on CUDA, which
/// has no kernel. Source: Katharopoulos et al. 2020 (elu + 1).
void feature_map(FeatureMap map, ConstTensorView x, TensorView y, const Stream& stream);

/// dx = dy map'(x); relu' and identity' at 0 are 0 and 1.
/// Shapes: x[n,H,D] as there, dy[n,H,D] fp32 -> dx[n,H,D] as x; each may be strided in rows and
/// heads. Aliasing: dx may be x.
void feature_map_backward(FeatureMap map, ConstTensorView x, ConstTensorView dy, TensorView dx,
                          const Stream& stream);

}  // namespace longhaul::runtime::ops
