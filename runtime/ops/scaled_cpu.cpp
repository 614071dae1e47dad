#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {

void cpu_scaled(ConstTensorView x, double factor, Write write, TensorView y, const Stream& stream) {
  const std::int64_t n = x.elements();
  const auto by = static_cast<float>(factor);
  with_activation("scaled", x.dtype(), [&]<class From>() {
    with_activation("scaled", y.dtype(), [&]<class To>() {
      stream.cpu_task([n, by, add = write == Write::add, from = x.as<From>(), to = y.as<To>()] {
#pragma omp parallel for simd if (n >= kParallelElements)
        for (std::int64_t i = 0; i < n; ++i)
          put(to[i], add ? to_float(to[i]) + by * to_float(from[i]) : by * to_float(from[i]));
      });
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
