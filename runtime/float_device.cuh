#pragma once
// Float types in device code, with the same bits as on the host (dtype.h). Private to .cu files.

#include <cstdint>

#include "runtime/dtype.h"

namespace longhaul::runtime::detail {

__device__ inline float load_float(float value) { return value; }
__device__ inline float load_float(double value) { return static_cast<float>(value); }
__device__ inline float load_float(BFloat16 value) {
  return __uint_as_float(static_cast<std::uint32_t>(value.bits) << 16);
}

__device__ inline void store_float(float value, float& to) { to = value; }
__device__ inline void store_float(float value, double& to) { to = value; }
/// Rounds to nearest even; NaN stays NaN. The same steps as BFloat16(float), whose constructor is
/// the host's.
__device__ inline void store_float(float value, BFloat16& to) {
  const std::uint32_t raw = __float_as_uint(value);
  const bool nan = (raw & 0x7fffffffu) > 0x7f800000u;
  to.bits = static_cast<std::uint16_t>(nan ? (raw >> 16) | 0x40u
                                           : (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16);
}

}  // namespace longhaul::runtime::detail
