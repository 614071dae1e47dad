#include "runtime/ops/sum_of_squares.h"

#include <algorithm>

#include "runtime/ops/cpu_only.h"

namespace longhaul::runtime::ops {
namespace {
constexpr std::int64_t kChunk = 16384;
}

void sum_of_squares(ConstTensorView values, TensorView result, const Stream& stream) {
  detail::require_cpu("sum_of_squares", stream);
  const std::int64_t n = values.elements();
  detail::require_shape("sum_of_squares", "values", values, {n});
  detail::require_shape("sum_of_squares", "result", result, {1});
  const std::int64_t chunks = (n + kChunk - 1) / kChunk;
  const Buffer scratch = stream.allocate(chunks * static_cast<std::int64_t>(sizeof(double)));
  auto* partial = reinterpret_cast<double*>(scratch.data());
  stream.enqueue([=, x = values.as<float>(), out = result.as<double>()] {
#pragma omp parallel for if (n >= detail::kParallelElements)
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t end = std::min(n, (chunk + 1) * kChunk);
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t i = chunk * kChunk; i < end; ++i) sum += static_cast<double>(x[i]) * x[i];
      partial[chunk] = sum;
    }
    *out = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) *out += partial[chunk];
  });
}

}  // namespace longhaul::runtime::ops
