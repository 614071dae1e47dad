#pragma once
// How two partial results of one row combine. Shared by merge() and by kernels that add into a
// partial, on the host and on devices.

#include <cmath>

#include "attention/lse.h"
#include "runtime/host_device.h"

namespace longhaul::attention {

struct MergeWeights {
  /// out = a * out_a + b * out_b, where a weight of 0 leaves its side unread. In double: a row is
  /// merged once for every rank that has keys of it, and a + b should stay 1.
  double a, b;
  Lse lse;
  LONGHAUL_HOST_DEVICE float of(float out_a, float out_b) const {
    return static_cast<float>(a * static_cast<double>(out_a) + b * static_cast<double>(out_b));
  }
};

/// The maximum comes first, so no exponential overflows; a side with LSE -inf does not count.
LONGHAUL_HOST_DEVICE inline MergeWeights merge_weights(Lse lse_a, Lse lse_b) {
  if (lse_b.high == -INFINITY) return {1, 0, lse_a};
  if (lse_a.high == -INFINITY) return {0, 1, lse_b};
  const double a = lse_a.value(), b = lse_b.value(), largest = a > b ? a : b;
  const double of_a = std::exp(a - largest), of_b = std::exp(b - largest), sum = of_a + of_b;
  return {of_a / sum, of_b / sum, Lse::of(largest + std::log(sum))};
}

}  // namespace longhaul::attention
