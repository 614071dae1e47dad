#pragma once
// How two partial results of one row combine. Shared by merge() and by kernels that add into a
// partial.

#include <cmath>
#include <limits>

namespace longhaul::attention {

struct MergeWeights {
  float a = 0, b = 0;  ///< out = a * out_a + b * out_b, where a weight of 0 leaves its side unread
  float lse = 0;
};

/// The maximum comes first, so no exponential overflows; a side with LSE -inf does not count.
inline MergeWeights merge_weights(float lse_a, float lse_b) {
  constexpr float kEmpty = -std::numeric_limits<float>::infinity();
  if (lse_b == kEmpty) return {1, 0, lse_a};
  if (lse_a == kEmpty) return {0, 1, lse_b};
  const float largest = lse_a > lse_b ? lse_a : lse_b;
  const float a = std::exp(lse_a - largest), b = std::exp(lse_b - largest), sum = a + b;
  return {a / sum, b / sum, largest + std::log(sum)};
}

}  // namespace longhaul::attention
