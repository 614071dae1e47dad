#include <algorithm>
#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kChunk = 16384;

struct FloatFactors {
  float gradient, beta1, beta2, rest1, rest2, keep, rate, root, eps;
};

FloatFactors in_float(const AdamWFactors& f, double gradient_factor) {
  const auto step = static_cast<double>(f.step);
  return {static_cast<float>(gradient_factor),
          static_cast<float>(f.beta1),
          static_cast<float>(f.beta2),
          static_cast<float>(1 - f.beta1),
          static_cast<float>(1 - f.beta2),
          static_cast<float>(1 - f.lr * f.weight_decay),
          static_cast<float>(f.lr / (1 - std::pow(f.beta1, step))),
          static_cast<float>(1 / std::sqrt(1 - std::pow(f.beta2, step))),
          static_cast<float>(f.eps)};
}

}  // namespace

void cpu_adamw(const AdamWFactors& factors, ConstTensorView gradient,
               ConstTensorView gradient_factor, TensorView value, TensorView first_moment,
               TensorView second_moment, const Stream& stream) {
  const std::int64_t n = value.elements();
  stream.cpu_task([=, g = gradient.as<float>(), factor = gradient_factor.as<double>(),
                   w = value.as<float>(), m = first_moment.as<float>(),
                   v = second_moment.as<float>()] {
    const FloatFactors f = in_float(factors, *factor);
#pragma omp parallel for if (n >= kParallelElements)
    for (std::int64_t begin = 0; begin < n; begin += kChunk) {
      const std::int64_t end = std::min(n, begin + kChunk);
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) {
        const float slope = g[i] * f.gradient;
        m[i] = f.beta1 * m[i] + f.rest1 * slope;
        v[i] = f.beta2 * v[i] + f.rest2 * slope * slope;
        w[i] = w[i] * f.keep - f.rate * m[i] / (std::sqrt(v[i]) * f.root + f.eps);
      }
    }
  });
}

}  // namespace longhaul::runtime::ops::detail
