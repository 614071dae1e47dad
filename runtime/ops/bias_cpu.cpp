#include <algorithm>
#include <array>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kColumns = 64;  // summed by one thread

template <class T>
void add_to_row(const float* bias, T* y, std::int64_t m) {
#pragma omp simd
  for (std::int64_t i = 0; i < m; ++i) put(y[i], to_float(y[i]) + bias[i]);
}

/// dbias[c] += sum over rows of dy, for columns [begin, end), in order of rows.
template <class T>
void add_columns(const T* dy, float* dbias, std::int64_t begin, std::int64_t end, std::int64_t rows,
                 std::int64_t m) {
  std::array<double, kColumns> sums{};
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* of_row = dy + row * m + begin;
#pragma omp simd
    for (std::int64_t i = 0; i < end - begin; ++i)
      sums[static_cast<std::size_t>(i)] += static_cast<double>(to_float(of_row[i]));
  }
  for (std::int64_t i = begin; i < end; ++i)
    dbias[i] += static_cast<float>(sums[static_cast<std::size_t>(i - begin)]);
}

}  // namespace

void cpu_add_bias(ConstTensorView bias, TensorView y, const Stream& stream) {
  const std::int64_t rows = y.size(0), m = y.size(1);
  with_activation("add_bias", y.dtype(), [&]<class T>() {
    stream.cpu_task([rows, m, from = bias.as<float>(), to = y.as<T>()] {
#pragma omp parallel for if (rows * m >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) add_to_row(from, to + row * m, m);
    });
  });
}

void cpu_bias_backward(ConstTensorView dy, TensorView dbias, const Stream& stream) {
  const std::int64_t rows = dy.size(0), m = dy.size(1);
  with_activation("bias_backward", dy.dtype(), [&]<class T>() {
    stream.cpu_task([rows, m, from = dy.as<T>(), to = dbias.as<float>()] {
#pragma omp parallel for if (rows * m >= kParallelElements)
      for (std::int64_t begin = 0; begin < m; begin += kColumns)
        add_columns(from, to, begin, std::min(m, begin + kColumns), rows, m);
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
