#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kChunk = 16384;

}  // namespace

void cpu_cast(ConstTensorView src, TensorView dst, const Stream& stream) {
  const std::int64_t n = src.elements();
  with_activation("cast", src.dtype(), [&]<class From>() {
    with_activation("cast", dst.dtype(), [&]<class To>() {
      stream.cpu_task([n, from = src.as<From>(), to = dst.as<To>()] {
#pragma omp parallel for if (n >= kParallelElements)
        for (std::int64_t begin = 0; begin < n; begin += kChunk) {
          const std::int64_t end = std::min(n, begin + kChunk);
#pragma omp simd
          for (std::int64_t i = begin; i < end; ++i) put(to[i], to_float(from[i]));
        }
      });
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
