#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

template <class Gate, class T>
void forward_row(const T* gates, const T* ups, T* ys, std::int64_t f) {
#pragma omp simd
  for (std::int64_t i = 0; i < f; ++i) {
    const float gate = to_float(gates[i]);
    put(ys[i], gated(gate, to_float(ups[i]), exponential(-Gate::argument(gate))));
  }
}

template <class Gate, class T>
void backward_row(T* gates, T* ups, T* dys, std::int64_t f) {
#pragma omp simd
  for (std::int64_t i = 0; i < f; ++i) {
    const float gate = to_float(gates[i]), up = to_float(ups[i]),
                e = exponential(-Gate::argument(gate));
    const Pair gradients = gated_gradients<Gate>(gate, up, e, to_float(dys[i]));
    put(gates[i], gradients.first);
    put(ups[i], gradients.second);
    put(dys[i], gated(gate, up, e));
  }
}

}  // namespace

void cpu_glu(Glu kind, ConstTensorView gate_up, TensorView y, const Stream& stream) {
  const std::int64_t rows = y.size(0), f = y.size(1);
  with_gate(kind, [&]<class Gate>() {
    with_activation("glu", y.dtype(), [&]<class T>() {
      stream.cpu_task([rows, f, in = gate_up.as<T>(), out = y.as<T>()] {
#pragma omp parallel for if (rows * f >= kParallelElements)
        for (std::int64_t row = 0; row < rows; ++row) {
          const T* gates = in + row * 2 * f;
          forward_row<Gate>(gates, gates + f, out + row * f, f);
        }
      });
    });
  });
}

void cpu_glu_backward(Glu kind, TensorView gate_up, TensorView dy, const Stream& stream) {
  const std::int64_t rows = dy.size(0), f = dy.size(1);
  with_gate(kind, [&]<class Gate>() {
    with_activation("glu_backward", dy.dtype(), [&]<class T>() {
      stream.cpu_task([rows, f, wide = gate_up.as<T>(), narrow = dy.as<T>()] {
#pragma omp parallel for if (rows * f >= kParallelElements)
        for (std::int64_t row = 0; row < rows; ++row) {
          T* gates = wide + row * 2 * f;
          backward_row<Gate>(gates, gates + f, narrow + row * f, f);
        }
      });
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
