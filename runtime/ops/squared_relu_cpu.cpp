#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {

void cpu_squared_relu(ConstTensorView x, TensorView y, const Stream& stream) {
  const std::int64_t n = x.elements();
  with_activation("squared_relu", x.dtype(), [&]<class T>() {
    stream.cpu_task([n, in = x.as<T>(), out = y.as<T>()] {
#pragma omp parallel for simd if (n >= kParallelElements)
      for (std::int64_t i = 0; i < n; ++i) put(out[i], relu_squared(to_float(in[i])));
    });
  });
}

void cpu_squared_relu_backward(TensorView x, TensorView dy, const Stream& stream) {
  const std::int64_t n = x.elements();
  with_activation("squared_relu_backward", x.dtype(), [&]<class T>() {
    stream.cpu_task([n, in = x.as<T>(), slopes = dy.as<T>()] {
#pragma omp parallel for simd if (n >= kParallelElements)
      for (std::int64_t i = 0; i < n; ++i) {
        const float value = to_float(in[i]);
        put(in[i], relu_squared_gradient(value, to_float(slopes[i])));
        put(slopes[i], relu_squared(value));
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
