#include <cmath>
#include <vector>

#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

template <class Position>
void fill_tables(const Position* positions, double theta, float* cosines, float* sines,
                 std::int64_t rows, std::int64_t half) {
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < half; ++i) {
    frequencies.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)));
  }
#pragma omp parallel for if (rows * half >= kParallelElements)
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
    const Pair pair = turned({to_float(x[i]), to_float(x[i + half])}, cosines[i], sign * sines[i]);
    x[i] = T(pair.first);
    x[i + half] = T(pair.second);
  }
}

}  // namespace

void cpu_rope_table(ConstTensorView positions, double theta, TensorView cosines, TensorView sines,
                    const Stream& stream) {
  const std::int64_t rows = cosines.size(0), half = cosines.size(1);
  float* c = cosines.as<float>();
  float* s = sines.as<float>();
  if (positions.dtype() == DType::int32) {
    stream.cpu_task(
        [=, at = positions.as<std::int32_t>()] { fill_tables(at, theta, c, s, rows, half); });
  } else {
    stream.cpu_task(
        [=, at = positions.as<std::int64_t>()] { fill_tables(at, theta, c, s, rows, half); });
  }
}

void cpu_rope(TensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
              const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  const float sign = rotation == Rotation::forward ? 1.0f : -1.0f;
  with_activation("rope", x.dtype(), [&]<class T>() {
    T* values = x.as<T>();
    const float* c = cosines.as<float>();
    const float* s = sines.as<float>();
    stream.cpu_task([=] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          rotate(values + (row * heads + head) * dim, c + row * (dim / 2), s + row * (dim / 2),
                 sign, dim / 2);
        }
      }
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
