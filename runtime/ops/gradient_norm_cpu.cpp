#include <algorithm>
#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

/// Apart from the threads' loop, in which GCC would add one at a time.
double sum_of_squares(const float* x, std::int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

}  // namespace

void cpu_squares_by_chunk(ConstTensorView values, TensorView sums, const Stream& stream) {
  stream.cpu_task([n = values.elements(), chunks = sums.elements(), x = values.as<float>(),
                   out = sums.as<double>()] {
#pragma omp parallel for if (n >= kParallelElements)
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t end = std::min(n, (chunk + 1) * kNormChunk);
      out[chunk] = sum_of_squares(x + chunk * kNormChunk, end - chunk * kNormChunk);
    }
  });
}

void cpu_norm_of_chunks(ConstTensorView sums, TensorView norm, const Stream& stream) {
  stream.cpu_task([chunks = sums.elements(), x = sums.as<double>(), out = norm.as<double>()] {
    double total = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) total += x[chunk];
    *out = std::sqrt(total);
  });
}

void cpu_clip_factor(ConstTensorView norm, double max_norm, std::int64_t step, TensorView factor,
                     const Stream& stream) {
  stream.cpu_task([=, value = norm.as<double>(), out = factor.as<double>()] {
    require_finite_norm(*value, step);
    *out = max_norm > 0 && *value > max_norm ? max_norm / *value : 1.0;
  });
}

}  // namespace longhaul::runtime::ops::detail
