#include <algorithm>
#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kChunk = 16384;

}  // namespace

void cpu_adamw(const AdamWFactors& factors, ConstTensorView gradient,
               ConstTensorView gradient_factor, const AdamWState& state, const Stream& stream) {
  const std::int64_t n = state.value.elements();
  BFloat16* rounded = state.rounded.data() == nullptr ? nullptr : state.rounded.as<BFloat16>();
  stream.cpu_task([=, g = gradient.as<float>(), factor = gradient_factor.as<double>(),
                   w = state.value.as<float>(), m = state.first_moment.as<float>(),
                   v = state.second_moment.as<float>()] {
    if (!std::isfinite(*factor)) return;
    const AdamWUpdate update(factors);
    const auto slope_factor = static_cast<float>(*factor);
#pragma omp parallel for if (n >= kParallelElements)
    for (std::int64_t begin = 0; begin < n; begin += kChunk) {
      const std::int64_t end = std::min(n, begin + kChunk);
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i)
        update.apply(g[i] * slope_factor, w[i], m[i], v[i]);
      if (rounded == nullptr) continue;
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) put(rounded[i], w[i]);
    }
  });
}

}  // namespace longhaul::runtime::ops::detail
