#pragma once
// The LSE of a row as two floats. What weighs is score - LSE: where the scores of a row share an
// offset, of 1000 say, that difference lies in what one float would round away. Private to
// attention/, on the host and on devices.

#include <cmath>

#include "runtime/host_device.h"

namespace longhaul::attention {

/// high + low, where high is that sum rounded to float; (-inf, 0) for a row without a key. In
/// memory side by side: an lse tensor is [rows, heads, 2].
struct Lse {
  float high, low;
  LONGHAUL_HOST_DEVICE double value() const {
    return static_cast<double>(high) + static_cast<double>(low);
  }
  /// The same for a row without a key, for NaN and for infinity, which have no low part.
  LONGHAUL_HOST_DEVICE static Lse of(double value) {
    const auto rounded = static_cast<float>(value);
    const bool finite = rounded - rounded == 0.0f;
    return {rounded, finite ? static_cast<float>(value - static_cast<double>(rounded)) : 0.0f};
  }
  LONGHAUL_HOST_DEVICE static Lse load(const float* at) { return {at[0], at[1]}; }
  LONGHAUL_HOST_DEVICE void store(float* at) const {
    at[0] = high;
    at[1] = low;
  }
};

/// Of a row whose largest score is `largest` and whose exp(score - largest) sum to `sum` > 0.
LONGHAUL_HOST_DEVICE inline Lse lse_of_sum(float largest, float sum) {
  return Lse::of(static_cast<double>(largest) + std::log(static_cast<double>(sum)));
}

}  // namespace longhaul::attention
