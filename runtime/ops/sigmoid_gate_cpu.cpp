#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {

void cpu_sigmoid_gate(ConstTensorView x, ConstTensorView gate, TensorView y, const Stream& stream) {
  const std::int64_t n = x.elements();
  with_activation("sigmoid_gate", x.dtype(), [&]<class T>() {
    stream.cpu_task([n, in = x.as<T>(), gates = gate.as<T>(), out = y.as<T>()] {
#pragma omp parallel for simd if (n >= kParallelElements)
      for (std::int64_t i = 0; i < n; ++i)
        put(out[i], to_float(in[i]) * sigmoid_of(exponential(-to_float(gates[i]))));
    });
  });
}

void cpu_sigmoid_gate_backward(ConstTensorView x, TensorView gate, TensorView dy,
                               const Stream& stream) {
  const std::int64_t n = x.elements();
  with_activation("sigmoid_gate_backward", x.dtype(), [&]<class T>() {
    stream.cpu_task([n, in = x.as<T>(), gates = gate.as<T>(), slopes = dy.as<T>()] {
#pragma omp parallel for simd if (n >= kParallelElements)
      for (std::int64_t i = 0; i < n; ++i) {
        const Pair gradients = sigmoid_gate_gradients(
            to_float(in[i]), exponential(-to_float(gates[i])), to_float(slopes[i]));
        put(slopes[i], gradients.first);
        put(gates[i], gradients.second);
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
