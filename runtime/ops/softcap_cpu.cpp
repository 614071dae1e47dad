#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {

void cpu_softcap(TensorView x, double cap, const Stream& stream) {
  const std::int64_t n = x.elements();
  const auto size = static_cast<float>(cap), inverse = static_cast<float>(1 / cap);
  stream.cpu_task([n, size, inverse, values = x.as<float>()] {
#pragma omp parallel for simd if (n >= kParallelElements)
    for (std::int64_t i = 0; i < n; ++i) values[i] = size * hyperbolic_tangent(values[i] * inverse);
  });
}

}  // namespace longhaul::runtime::ops::detail
