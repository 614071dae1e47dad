#include "runtime/ops/elementwise.h"

#include <algorithm>

#include "runtime/ops/cpu_only.h"

namespace longhaul::runtime::ops {
namespace {

using detail::to_float;

constexpr std::int64_t kChunk = 16384;

template <class Body>
void over_chunks(std::int64_t n, const Body& body) {
#pragma omp parallel for if (n >= detail::kParallelElements)
  for (std::int64_t begin = 0; begin < n; begin += kChunk) body(begin, std::min(n, begin + kChunk));
}

}  // namespace

void add(ConstTensorView a, ConstTensorView b, TensorView sum, const Stream& stream) {
  detail::require_cpu("add", stream);
  LONGHAUL_CHECK(std::ranges::equal(a.sizes(), b.sizes()) &&
                     std::ranges::equal(a.sizes(), sum.sizes()) && a.contiguous() &&
                     b.contiguous() && sum.contiguous(),
                 "add takes contiguous views of equal sizes; got ", a.elements(), ", ",
                 b.elements(), " and ", sum.elements(), " elements");
  const std::int64_t n = a.elements();
  detail::with_activation("add", a.dtype(), [&]<class A>() {
    detail::with_activation("add", b.dtype(), [&]<class B>() {
      detail::with_activation("add", sum.dtype(), [&]<class S>() {
        stream.enqueue([n, x = a.as<A>(), y = b.as<B>(), out = sum.as<S>()] {
          over_chunks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
            for (std::int64_t i = begin; i < end; ++i) out[i] = S(to_float(x[i]) + to_float(y[i]));
          });
        });
      });
    });
  });
}

void cast(ConstTensorView src, TensorView dst, const Stream& stream) {
  detail::require_cpu("cast", stream);
  LONGHAUL_CHECK(src.elements() == dst.elements() && src.contiguous() && dst.contiguous(),
                 "cast of ", src.elements(), " elements to ", dst.elements(),
                 "; both must be contiguous");
  const std::int64_t n = src.elements();
  detail::with_activation("cast", src.dtype(), [&]<class From>() {
    detail::with_activation("cast", dst.dtype(), [&]<class To>() {
      stream.enqueue([n, from = src.as<From>(), to = dst.as<To>()] {
        over_chunks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
          for (std::int64_t i = begin; i < end; ++i) to[i] = To(to_float(from[i]));
        });
      });
    });
  });
}

}  // namespace longhaul::runtime::ops
