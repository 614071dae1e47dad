#include <cmath>
#include <span>
#include <vector>

#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

template <class Position>
void fill_tables(const Position* positions, const std::vector<double>& frequencies, double factor,
                 float* cosines, float* sines, std::int64_t rows) {
  const std::int64_t half = std::ssize(frequencies);
#pragma omp parallel for if (rows * half >= kParallelElements)
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(positions[row]) * frequencies[static_cast<std::size_t>(i)];
      cosines[row * half + i] = static_cast<float>(factor * std::cos(angle));
      sines[row * half + i] = static_cast<float>(factor * std::sin(angle));
    }
  }
}

/// One head.
template <class From, class To>
void rotate(const From* x, const float* cosines, const float* sines, float sign, To* y,
            std::int64_t half, std::int64_t dim) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const Pair pair = turned({to_float(x[i]), to_float(x[i + half])}, cosines[i], sign * sines[i]);
    put(y[i], pair.first);
    put(y[i + half], pair.second);
  }
  for (std::int64_t i = 2 * half; i < dim; ++i) put(y[i], to_float(x[i]));
}

}  // namespace

void cpu_rope_table(ConstTensorView positions, std::span<const double> frequencies, double factor,
                    TensorView cosines, TensorView sines, const Stream& stream) {
  const auto fill = [&](const auto* at) {
    stream.cpu_task([=, own = std::vector<double>(frequencies.begin(), frequencies.end()),
                     c = cosines.as<float>(), s = sines.as<float>(),
                     rows = cosines.size(0)] { fill_tables(at, own, factor, c, s, rows); });
  };
  if (positions.dtype() == DType::int32) return fill(positions.as<std::int32_t>());
  fill(positions.as<std::int64_t>());
}

void cpu_rope(ConstTensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
              TensorView y, const Stream& stream) {
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2), half = cosines.size(1);
  const std::int64_t x_step = x.stride(0), y_step = y.stride(0);
  const float sign = rotation == Rotation::forward ? 1.0f : -1.0f;
  const float* c = cosines.as<float>();
  const float* s = sines.as<float>();
  with_activation("rope", x.dtype(), [&]<class From>() {
    with_activation("rope", y.dtype(), [&]<class To>() {
      stream.cpu_task([=, from = x.as<From>(), to = y.as<To>()] {
#pragma omp parallel for if (rows * heads * dim >= kParallelElements)
        for (std::int64_t row = 0; row < rows; ++row) {
          for (std::int64_t head = 0; head < heads; ++head) {
            rotate(from + row * x_step + head * dim, c + row * half, s + row * half, sign,
                   to + row * y_step + head * dim, half, dim);
          }
        }
      });
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
