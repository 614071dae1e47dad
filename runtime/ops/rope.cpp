#include "runtime/ops/rope.h"

#include <cmath>
#include <vector>

#include "runtime/ops/cpu_only.h"

namespace longhaul::runtime::ops {
namespace {

using detail::to_float;

template <class Position>
void fill_tables(const Position* positions, double theta, float* cosines, float* sines,
                 std::int64_t rows, std::int64_t half) {
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < half; ++i) {
    frequencies.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)));
  }
#pragma omp parallel for if (rows * half >= detail::kParallelElements)
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(positions[row]) * frequencies[static_cast<std::size_t>(i)];
      cosines[row * half + i] = static_cast<float>(std::cos(angle));
      sines[row * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

template <class T>
void rotate(T* x, const float* cosines, const float* sines, float sign, std::int64_t half) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = to_float(x[i]), b = to_float(x[i + half]), s = sign * sines[i];
    x[i] = T(a * cosines[i] - b * s);
    x[i + half] = T(b * cosines[i] + a * s);
  }
}

}  // namespace

void rope_table(ConstTensorView positions, double theta, TensorView cosines, TensorView sines,
                const Stream& stream) {
  detail::require_cpu("rope_table", stream);
  LONGHAUL_CHECK(cosines.dims() == 2, "rope_table: cosines has ", cosines.dims(),
                 " dims; expected 2");
  const std::int64_t rows = cosines.size(0), half = cosines.size(1);
  detail::require_shape("rope_table", "positions", positions, {rows});
  detail::require_dtype("rope_table", "positions", positions, {DType::int32, DType::int64});
  detail::require_shape("rope_table", "cosines", cosines, {rows, half});
  detail::require_shape("rope_table", "sines", sines, {rows, half});
  float* c = cosines.as<float>();
  float* s = sines.as<float>();
  if (positions.dtype() == DType::int32) {
    stream.enqueue(
        [=, at = positions.as<std::int32_t>()] { fill_tables(at, theta, c, s, rows, half); });
  } else {
    stream.enqueue(
        [=, at = positions.as<std::int64_t>()] { fill_tables(at, theta, c, s, rows, half); });
  }
}

void rope(TensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
          const Stream& stream) {
  detail::require_cpu("rope", stream);
  LONGHAUL_CHECK(x.dims() == 3 && x.size(2) % 2 == 0, "rope: x has ", x.dims(),
                 " dims; expected [rows, heads, even D]");
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  detail::require_shape("rope", "x", x, {rows, heads, dim});
  detail::require_shape("rope", "cosines", cosines, {rows, dim / 2});
  detail::require_shape("rope", "sines", sines, {rows, dim / 2});
  const float sign = rotation == Rotation::forward ? 1.0f : -1.0f;
  detail::with_activation("rope", x.dtype(), [&]<class T>() {
    T* values = x.as<T>();
    const float* c = cosines.as<float>();
    const float* s = sines.as<float>();
    stream.enqueue([=] {
#pragma omp parallel for if (rows * heads * dim >= detail::kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          rotate(values + (row * heads + head) * dim, c + row * (dim / 2), s + row * (dim / 2),
                 sign, dim / 2);
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops
