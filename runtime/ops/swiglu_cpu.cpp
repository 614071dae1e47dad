#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/exponential.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kChunk = 4096;

}  // namespace

void cpu_swiglu(ConstTensorView gate, ConstTensorView up, TensorView y, const Stream& stream) {
  with_activation("swiglu", gate.dtype(), [&]<class T>() {
    const T* g = gate.as<T>();
    const T* u = up.as<T>();
    T* out = y.as<T>();
    const std::int64_t n = gate.elements();
    stream.cpu_task([=] {
#pragma omp parallel for if (n >= kParallelElements)
      for (std::int64_t begin = 0; begin < n; begin += kChunk) {
        const std::int64_t end = std::min(n, begin + kChunk);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const float x = to_float(g[i]);
          out[i] = T(gated(x, to_float(u[i]), exponential(-x)));
        }
      }
    });
  });
}

void cpu_swiglu_backward(ConstTensorView gate, ConstTensorView up, ConstTensorView dy,
                         TensorView dgate, TensorView dup, const Stream& stream) {
  with_activation("swiglu_backward", gate.dtype(), [&]<class T>() {
    const T* g = gate.as<T>();
    const T* u = up.as<T>();
    const T* d = dy.as<T>();
    T* dg = dgate.as<T>();
    T* du = dup.as<T>();
    const std::int64_t n = gate.elements();
    stream.cpu_task([=] {
#pragma omp parallel for if (n >= kParallelElements)
      for (std::int64_t begin = 0; begin < n; begin += kChunk) {
        const std::int64_t end = std::min(n, begin + kChunk);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const float x = to_float(g[i]);
          const Pair gradients =
              gated_gradients(x, to_float(u[i]), exponential(-x), to_float(d[i]));
          dg[i] = T(gradients.first);
          du[i] = T(gradients.second);
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
