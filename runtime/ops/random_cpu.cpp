#include <Random123/philox.h>

#include <array>
#include <cmath>
#include <numbers>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

/// Elements 4 block .. 4 block + 3, uniform in (0, 1): the midpoints of 2^32 equal intervals.
std::array<double, 4> uniforms(RandomKey key, std::uint64_t block) {
  constexpr std::uint64_t kLow = 0xffffffffu;
  const auto word = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const r123::Philox4x32::ctr_type counter = {{word(block & kLow), word(block >> 32),
                                               word(key.stream_id & kLow),
                                               word(key.stream_id >> 32)}};
  const r123::Philox4x32::key_type seed = {{word(key.seed & kLow), word(key.seed >> 32)}};
  const auto bits = r123::Philox4x32()(counter, seed);
  std::array<double, 4> result{};
  for (std::size_t i = 0; i < 4; ++i) result[i] = (static_cast<double>(bits[i]) + 0.5) * 0x1p-32;
  return result;
}

/// Two pairs by Box-Muller.
std::array<double, 4> normals(RandomKey key, std::uint64_t block) {
  const std::array<double, 4> u = uniforms(key, block);
  std::array<double, 4> result{};
  for (std::size_t i = 0; i < 4; i += 2) {
    const double radius = std::sqrt(-2 * std::log(u[i])), angle = 2 * std::numbers::pi * u[i + 1];
    result[i] = radius * std::cos(angle);
    result[i + 1] = radius * std::sin(angle);
  }
  return result;
}

}  // namespace

void cpu_fill_normal(TensorView values, double mean, double stddev, RandomKey key,
                     std::int64_t first_element, const Stream& stream) {
  with_activation("fill_normal", values.dtype(), [&]<class T>() {
    stream.cpu_task([=, out = values.as<T>(), n = values.elements()] {
      const std::int64_t first_block = first_element / 4, last_block = (first_element + n + 3) / 4;
#pragma omp parallel for if (n >= kParallelElements)
      for (std::int64_t block = first_block; block < last_block; ++block) {
        const std::array<double, 4> drawn = normals(key, static_cast<std::uint64_t>(block));
        for (std::int64_t lane = 0; lane < 4; ++lane) {
          const std::int64_t at = block * 4 + lane - first_element;
          if (at < 0 || at >= n) continue;
          out[at] = T(static_cast<float>(mean + stddev * drawn[static_cast<std::size_t>(lane)]));
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
