#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kChunk = 16384;

void cap_values(float* values, std::int64_t count, float cap, float inverse) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i)
    values[i] = cap * hyperbolic_tangent(values[i] * inverse);
}

}  // namespace

void cpu_softcap(TensorView x, double cap, const Stream& stream) {
  const std::int64_t n = x.elements();
  const auto size = static_cast<float>(cap), inverse = static_cast<float>(1 / cap);
  stream.cpu_task([n, size, inverse, values = x.as<float>()] {
#pragma omp parallel for if (n >= kParallelElements)
    for (std::int64_t begin = 0; begin < n; begin += kChunk)
      cap_values(values + begin, std::min(kChunk, n - begin), size, inverse);
  });
}

}  // namespace longhaul::runtime::ops::detail
