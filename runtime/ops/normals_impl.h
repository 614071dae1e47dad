#pragma once
// Private to runtime/ops: the standard normals of a block of four elements, on host and device.

#include "runtime/host_device.h"
#define R123_CUDA_DEVICE LONGHAUL_HOST_DEVICE
#include <Random123/philox.h>

#include <cmath>
#include <numbers>

#include "runtime/ops/random.h"

namespace longhaul::runtime::ops::detail {

/// Of a block of four elements.
struct Four {
  double at[4];
};

/// Elements 4 block .. 4 block + 3, uniform in (0, 1): the midpoints of 2^32 equal intervals.
LONGHAUL_HOST_DEVICE inline Four uniforms_of_block(RandomKey key, std::uint64_t block) {
  constexpr std::uint64_t kLow = 0xffffffffu;
  const auto word = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const r123::Philox4x32::ctr_type counter = {{word(block & kLow), word(block >> 32),
                                               word(key.stream_id & kLow),
                                               word(key.stream_id >> 32)}};
  const r123::Philox4x32::key_type seed = {{word(key.seed & kLow), word(key.seed >> 32)}};
  const r123::Philox4x32::ctr_type bits = r123::Philox4x32()(counter, seed);
  Four result{};
  for (unsigned i = 0; i < 4; ++i) result.at[i] = (static_cast<double>(bits.v[i]) + 0.5) * 0x1p-32;
  return result;
}

/// The same elements, normal: two pairs by Box-Muller.
LONGHAUL_HOST_DEVICE inline Four normals(RandomKey key, std::uint64_t block) {
  const Four uniform = uniforms_of_block(key, block);
  Four result{};
  for (unsigned i = 0; i < 4; i += 2) {
    const double angle = 2 * std::numbers::pi * uniform.at[i + 1];
    const double radius = sqrt(-2 * log(uniform.at[i]));
    result.at[i] = radius * cos(angle);
    result.at[i + 1] = radius * sin(angle);
  }
  return result;
}

}  // namespace longhaul::runtime::ops::detail
