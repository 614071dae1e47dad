#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kColumns = 64;  // of the weight gradient, summed by one thread

/// What a norm multiplies by.
struct Factors {
  const float* values;
  float offset;

  explicit Factors(const NormWeight& weight)
      : values(weight.values.as<float>()), offset(weight.offset) {}
  float operator[](std::int64_t i) const { return offset + values[i]; }
};

template <class T>
void apply_row(const T* x, const Factors& weight, float inv_rms, T* y, std::int64_t h) {
#pragma omp simd
  for (std::int64_t i = 0; i < h; ++i) put(y[i], normed(to_float(x[i]), inv_rms, weight[i]));
}

template <class T>
float inverse_rms_of(const T* x, std::int64_t h, double eps) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < h; ++i) sum += static_cast<double>(to_float(x[i])) * to_float(x[i]);
  return static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(h) + eps));
}

/// sum of weight dy x. Through a reference to the weight, GCC would add one at a time.
template <class T>
double weighted_dot(const T* x, Factors weight, const float* dy, std::int64_t h) {
  double dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < h; ++i)
    dot += static_cast<double>(weight[i] * dy[i]) * static_cast<double>(to_float(x[i]));
  return dot;
}

/// dx = inv_rms * (weight dy - x * inv_rms^2 * mean(weight dy x)).
template <class T>
void backward_row(const T* x, const Factors& weight, float inv_rms, const float* dy, T* dx,
                  Write write, std::int64_t h) {
  const double inverse = inv_rms;
  const auto pull = static_cast<float>(weighted_dot(x, weight, dy, h) * inverse * inverse /
                                       static_cast<double>(h));
  if (write == Write::add) {
#pragma omp simd
    for (std::int64_t i = 0; i < h; ++i) {
      put(dx[i], to_float(dx[i]) + norm_gradient(to_float(x[i]), inv_rms, weight[i], dy[i], pull));
    }
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < h; ++i)
      put(dx[i], norm_gradient(to_float(x[i]), inv_rms, weight[i], dy[i], pull));
  }
}

/// dweight[c] += sum over rows of dy x inv_rms, for columns [begin, end).
template <class T>
void backward_columns(const T* x, const float* inv_rms, const float* dy, float* dweight,
                      std::int64_t begin, std::int64_t end, std::int64_t rows, std::int64_t h) {
  std::array<double, kColumns> sums{};
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* x_row = x + row * h + begin;
    const float* dy_row = dy + row * h + begin;
#pragma omp simd
    for (std::int64_t i = 0; i < end - begin; ++i) {
      sums[static_cast<std::size_t>(i)] +=
          static_cast<double>(dy_row[i] * (to_float(x_row[i]) * inv_rms[row]));
    }
  }
  for (std::int64_t i = begin; i < end; ++i) {
    dweight[i] += static_cast<float>(sums[static_cast<std::size_t>(i - begin)]);
  }
}

}  // namespace

void cpu_rms_norm(ConstTensorView x, const NormWeight& weight, double eps, TensorView y,
                  TensorView inv_rms, const Stream& stream) {
  with_activation("rms_norm", x.dtype(), [&]<class T>() {
    const T* in = x.as<T>();
    const Factors factors(weight);
    T* out = y.as<T>();
    float* inverse = inv_rms.as<float>();
    const std::int64_t rows = x.size(0), h = x.size(1);
    stream.cpu_task([=] {
#pragma omp parallel for if (rows * h >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        inverse[row] = inverse_rms_of(in + row * h, h, eps);
        apply_row(in + row * h, factors, inverse[row], out + row * h, h);
      }
    });
  });
}

void cpu_inverse_rms(ConstTensorView x, double eps, TensorView inv_rms, const Stream& stream) {
  with_activation("inverse_rms", x.dtype(), [&]<class T>() {
    const std::int64_t rows = x.size(0), h = x.size(1);
    stream.cpu_task([rows, h, eps, in = x.as<T>(), inverse = inv_rms.as<float>()] {
#pragma omp parallel for if (rows * h >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row)
        inverse[row] = inverse_rms_of(in + row * h, h, eps);
    });
  });
}

void cpu_rms_norm_apply(ConstTensorView x, const NormWeight& weight, ConstTensorView inv_rms,
                        TensorView y, const Stream& stream) {
  with_activation("rms_norm_apply", x.dtype(), [&]<class T>() {
    const T* in = x.as<T>();
    const Factors factors(weight);
    const float* inverse = inv_rms.as<float>();
    T* out = y.as<T>();
    const std::int64_t rows = x.size(0), h = x.size(1);
    stream.cpu_task([=] {
#pragma omp parallel for if (rows * h >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        apply_row(in + row * h, factors, inverse[row], out + row * h, h);
      }
    });
  });
}

void cpu_rms_norm_backward(const RmsNormBackwardInputs& inputs, TensorView dx, Write write_dx,
                           TensorView dweight, const Stream& stream) {
  with_activation("rms_norm_backward", inputs.x.dtype(), [&]<class T>() {
    const T* x = inputs.x.as<T>();
    const Factors weight(inputs.weight);
    const float* inv_rms = inputs.inv_rms.as<float>();
    const float* dy = inputs.dy.as<float>();
    T* dx_out = dx.as<T>();
    float* dweight_out = dweight.as<float>();
    const std::int64_t rows = inputs.x.size(0), h = inputs.x.size(1);
    stream.cpu_task([=] {
#pragma omp parallel for if (rows * h >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t at = row * h;
        backward_row(x + at, weight, inv_rms[row], dy + at, dx_out + at, write_dx, h);
      }
#pragma omp parallel for if (rows * h >= kParallelElements)
      for (std::int64_t begin = 0; begin < h; begin += kColumns) {
        backward_columns(x, inv_rms, dy, dweight_out, begin, std::min(h, begin + kColumns), rows,
                         h);
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
