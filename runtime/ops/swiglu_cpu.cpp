#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {

void cpu_swiglu(ConstTensorView gate_up, TensorView y, const Stream& stream) {
  const std::int64_t rows = y.size(0), f = y.size(1);
  with_activation("swiglu", y.dtype(), [&]<class T>() {
    stream.cpu_task([rows, f, in = gate_up.as<T>(), out = y.as<T>()] {
#pragma omp parallel for if (rows * f >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        const T* gates = in + row * 2 * f;
        const T* ups = gates + f;
        T* ys = out + row * f;
#pragma omp simd
        for (std::int64_t i = 0; i < f; ++i) {
          const float gate = to_float(gates[i]);
          put(ys[i], gated(gate, to_float(ups[i]), exponential(-gate)));
        }
      }
    });
  });
}

void cpu_swiglu_backward(TensorView gate_up, TensorView dy, const Stream& stream) {
  const std::int64_t rows = dy.size(0), f = dy.size(1);
  with_activation("swiglu_backward", dy.dtype(), [&]<class T>() {
    stream.cpu_task([rows, f, wide = gate_up.as<T>(), narrow = dy.as<T>()] {
#pragma omp parallel for if (rows * f >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        T* gates = wide + row * 2 * f;
        T* ups = gates + f;
        T* dys = narrow + row * f;
#pragma omp simd
        for (std::int64_t i = 0; i < f; ++i) {
          const float gate = to_float(gates[i]), up = to_float(ups[i]), e = exponential(-gate);
          const Pair gradients = gated_gradients(gate, up, e, to_float(dys[i]));
          put(gates[i], gradients.first);
          put(ups[i], gradients.second);
          put(dys[i], gated(gate, up, e));
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
