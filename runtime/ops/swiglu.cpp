#include "runtime/ops/swiglu.h"

#include <algorithm>

#include "runtime/ops/cpu_only.h"
#include "runtime/ops/exponential.h"

namespace longhaul::runtime::ops {
namespace {

using detail::to_float;

constexpr std::int64_t kChunk = 4096;

void check(const char* op, const ConstTensorView& reference,
           std::initializer_list<ConstTensorView> others) {
  LONGHAUL_CHECK(reference.dims() == 2, op, ": gate has ", reference.dims(),
                 " dims; expected [rows, f]");
  detail::require_shape(op, "gate", reference, {reference.size(0), reference.size(1)});
  for (const ConstTensorView& other : others) {
    detail::require_shape(op, "an operand", other, {reference.size(0), reference.size(1)});
    detail::require_dtype(op, "an operand", other, {reference.dtype()});
  }
}

}  // namespace

void swiglu(ConstTensorView gate, ConstTensorView up, TensorView y, const Stream& stream) {
  detail::require_cpu("swiglu", stream);
  check("swiglu", gate, {up, y});
  detail::with_activation("swiglu", gate.dtype(), [&]<class T>() {
    const T* g = gate.as<T>();
    const T* u = up.as<T>();
    T* out = y.as<T>();
    const std::int64_t n = gate.elements();
    stream.enqueue([=] {
#pragma omp parallel for if (n >= detail::kParallelElements)
      for (std::int64_t begin = 0; begin < n; begin += kChunk) {
        const std::int64_t end = std::min(n, begin + kChunk);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const float x = to_float(g[i]);
          out[i] = T(x / (1.0f + detail::exponential(-x)) * to_float(u[i]));
        }
      }
    });
  });
}

void swiglu_backward(ConstTensorView gate, ConstTensorView up, ConstTensorView dy, TensorView dgate,
                     TensorView dup, const Stream& stream) {
  detail::require_cpu("swiglu_backward", stream);
  check("swiglu_backward", gate, {up, dy, dgate, dup});
  detail::with_activation("swiglu_backward", gate.dtype(), [&]<class T>() {
    const T* g = gate.as<T>();
    const T* u = up.as<T>();
    const T* d = dy.as<T>();
    T* dg = dgate.as<T>();
    T* du = dup.as<T>();
    const std::int64_t n = gate.elements();
    stream.enqueue([=] {
#pragma omp parallel for if (n >= detail::kParallelElements)
      for (std::int64_t begin = 0; begin < n; begin += kChunk) {
        const std::int64_t end = std::min(n, begin + kChunk);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const float x = to_float(g[i]), grad = to_float(d[i]);
          const float sigmoid = 1.0f / (1.0f + detail::exponential(-x));
          dg[i] = T(grad * to_float(u[i]) * sigmoid * (1.0f + x * (1.0f - sigmoid)));
          du[i] = T(grad * x * sigmoid);
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops
