#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kChunk = 16384;

template <class Body>
void over_chunks(std::int64_t n, const Body& body) {
#pragma omp parallel for if (n >= kParallelElements)
  for (std::int64_t begin = 0; begin < n; begin += kChunk) body(begin, std::min(n, begin + kChunk));
}

}  // namespace

void cpu_add(ConstTensorView a, ConstTensorView b, TensorView sum, const Stream& stream) {
  const std::int64_t n = a.elements();
  with_activation("add", a.dtype(), [&]<class A>() {
    with_activation("add", b.dtype(), [&]<class B>() {
      with_activation("add", sum.dtype(), [&]<class S>() {
        stream.cpu_task([n, x = a.as<A>(), y = b.as<B>(), out = sum.as<S>()] {
          over_chunks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
            for (std::int64_t i = begin; i < end; ++i) out[i] = S(to_float(x[i]) + to_float(y[i]));
          });
        });
      });
    });
  });
}

void cpu_cast(ConstTensorView src, TensorView dst, const Stream& stream) {
  const std::int64_t n = src.elements();
  with_activation("cast", src.dtype(), [&]<class From>() {
    with_activation("cast", dst.dtype(), [&]<class To>() {
      stream.cpu_task([n, from = src.as<From>(), to = dst.as<To>()] {
        over_chunks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
          for (std::int64_t i = begin; i < end; ++i) to[i] = To(to_float(from[i]));
        });
      });
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
