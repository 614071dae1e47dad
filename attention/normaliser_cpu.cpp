#include <algorithm>

#include "attention/token_ops_impl.h"
#include "runtime/ops/checks.h"

namespace longhaul::attention::detail {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::detail::heads_of;
using runtime::ops::detail::kParallelElements;
using runtime::ops::detail::to_float;
using runtime::ops::detail::with_activation;

void cpu_append_ones(ConstTensorView v, TensorView extended, const Stream& stream) {
  const std::int64_t rows = v.size(0), heads = v.size(1), dim = v.size(2);
  with_activation("append_ones", v.dtype(), [&]<class T>() {
    stream.cpu_task([=, from = heads_of<T>(v), to = heads_of<T>(extended)] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          T* out = std::copy_n(from.of(row, head), dim, to.of(row, head));
          *out = T(1.0f);
        }
      }
    });
  });
}

void cpu_normalise(ConstTensorView extended, TensorView out, const Stream& stream) {
  const std::int64_t rows = out.size(0) * out.size(1), dim = out.size(2);
  stream.cpu_task([=, in = extended.as<float>(), to = out.as<float>()] {
#pragma omp parallel for if (rows * dim >= kParallelElements)
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* from = in + row * (dim + 1);
      const float denominator = from[dim];
#pragma omp simd
      for (std::int64_t i = 0; i < dim; ++i)
        to[row * dim + i] = denominator == 0 ? 0.0f : from[i] / denominator;
    }
  });
}

void cpu_normalise_backward(ConstTensorView extended, ConstTensorView dout, TensorView dextended,
                            const Stream& stream) {
  const std::int64_t rows = dout.size(0) * dout.size(1), dim = dout.size(2);
  with_activation("normalise_backward", dout.dtype(), [&]<class T>() {
    with_activation("normalise_backward", dextended.dtype(), [&]<class To>() {
      stream.cpu_task(
          [=, in = extended.as<float>(), slopes = dout.as<T>(), out = dextended.as<To>()] {
#pragma omp parallel for if (rows * dim >= kParallelElements)
            for (std::int64_t row = 0; row < rows; ++row) {
              const float* from = in + row * (dim + 1);
              const T* slope = slopes + row * dim;
              To* to = out + row * (dim + 1);
              const float denominator = from[dim];
              if (denominator == 0) {
                std::fill_n(to, dim + 1, To(0.0f));
                continue;
              }
              double dot = 0;
#pragma omp simd reduction(+ : dot)
              for (std::int64_t i = 0; i < dim; ++i) {
                to[i] = To(to_float(slope[i]) / denominator);
                dot += static_cast<double>(to_float(slope[i])) * from[i];
              }
              const auto square = static_cast<double>(denominator) * denominator;
              to[dim] = To(static_cast<float>(-dot / square));
            }
          });
    });
  });
}

}  // namespace longhaul::attention::detail
