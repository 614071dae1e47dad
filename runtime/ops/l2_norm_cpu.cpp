#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

template <class T>
float inverse_length(const T* x, double eps, std::int64_t dim) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < dim; ++i)
    sum += static_cast<double>(to_float(x[i])) * to_float(x[i]);
  return static_cast<float>(1.0 / std::sqrt(sum + eps));
}

template <class T>
void backward_head(const T* x, const float* dy, double eps, T* dx, std::int64_t dim) {
  const float inverse = inverse_length(x, eps, dim);
  double dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < dim; ++i) dot += static_cast<double>(dy[i]) * to_float(x[i]);
  const auto pull = static_cast<float>(dot * inverse * inverse);
#pragma omp simd
  for (std::int64_t i = 0; i < dim; ++i) put(dx[i], inverse * (dy[i] - to_float(x[i]) * pull));
}

}  // namespace

void cpu_l2_norm(ConstTensorView x, double eps, TensorView y, const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  with_activation("l2_norm", x.dtype(), [&]<class T>() {
    stream.cpu_task([=, from = heads_of<T>(x), to = heads_of<T>(y)] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          const T* in = from.of(row, head);
          T* out = to.of(row, head);
          const float inverse = inverse_length(in, eps, dim);
#pragma omp simd
          for (std::int64_t i = 0; i < dim; ++i) put(out[i], to_float(in[i]) * inverse);
        }
      }
    });
  });
}

void cpu_l2_norm_backward(ConstTensorView x, ConstTensorView dy, double eps, TensorView dx,
                          const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  with_activation("l2_norm_backward", x.dtype(), [&]<class T>() {
    stream.cpu_task([=, in = heads_of<T>(x), slopes = heads_of<float>(dy), to = heads_of<T>(dx)] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head)
          backward_head(in.of(row, head), slopes.of(row, head), eps, to.of(row, head), dim);
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
