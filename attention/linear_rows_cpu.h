// What the kernels of linear attention do with rows of float32 in whole vectors: read them out of
// views, transpose, scale, and sum. Columns past the end are zero. Compiled for each target:
// runtime/simd_cpu.h.

#if defined(LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H
#undef LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H
#else
#define LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H
#endif

#include <cmath>

#include "attention/linear_tile_cpu.h"
#include "attention/pack_cpu.h"
#include "attention/softmax_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

/// to[row] <- scale times the rows.
inline void load_rows(const HeadRows& rows, float scale, Matrix to) {
  pack_rows(rows, scale, to.data, to.ld);
}

/// Rows of one head of a view [rows, heads, dim] <- from; or += where `add`.
inline void store_rows(Matrix from, const runtime::TensorView& view, std::int64_t head,
                       std::int64_t begin, std::int64_t count, bool add = false) {
  for (std::int64_t row = 0; row < count; ++row) {
    float* to = view.as<float>() + (begin + row) * view.stride(0) + head * view.stride(1);
    const float* values = from.row(row);
    if (!add) {
      std::copy_n(values, view.size(2), to);
      continue;
    }
    for (std::int64_t d = 0; d < view.size(2); ++d) to[d] += values[d];
  }
}

/// to[columns, rows] <- from[rows, columns], zeros up to whole vectors of rows.
inline void transpose(std::int64_t rows, std::int64_t columns, Matrix from, Matrix to) {
  const HeadRows all{.stride = from.ld, .count = rows, .dim = columns};
  for (std::int64_t row = 0; row < rows; row += kLanes) {
    const bool inside = row + kLanes <= rows;
    for (std::int64_t column = 0; column < columns; column += 4) {
      Vector x[4];
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < 4; ++i) {
        x[i] = inside ? load_fours(kFloats, from.row(row + i) + column, 4 * from.ld)
                      : load_fours_inside(from.data, all, row + i, column);
      }
      transpose_fours(x);
      const std::int64_t left = std::min<std::int64_t>(4, columns - column);
      for (std::int64_t i = 0; i < left; ++i) hn::Store(x[i], kFloats, to.row(column + i) + row);
    }
  }
}

inline void clear(std::int64_t rows, Matrix matrix) {
  std::fill_n(matrix.data, rows * matrix.ld, 0.0f);
}

/// Row i of a lower triangle: the columns from `begin` on, i or i + 1, to the end of the
/// diagonal's vector <- 0.
inline void clear_right(float* row, std::int64_t i, std::int64_t begin) {
  std::fill(row + begin, row + padded_to_vectors(i + 1), 0.0f);
}

/// to <- by * x over whole vectors of `columns`; `to` may be x.
inline void scaled(std::int64_t columns, float by, const float* x, float* to) {
  const Vector factor = hn::Set(kFloats, by);
  for (std::int64_t d = 0; d < columns; d += kLanes)
    hn::Store(hn::Mul(factor, hn::Load(kFloats, x + d)), kFloats, to + d);
}
/// to <- x * y, likewise.
inline void multiplied(std::int64_t columns, const float* x, const float* y, float* to) {
  for (std::int64_t d = 0; d < columns; d += kLanes)
    hn::Store(hn::Mul(hn::Load(kFloats, x + d), hn::Load(kFloats, y + d)), kFloats, to + d);
}
/// to += x, likewise.
inline void added(std::int64_t columns, const float* x, float* to) {
  for (std::int64_t d = 0; d < columns; d += kLanes)
    hn::Store(hn::Add(hn::Load(kFloats, to + d), hn::Load(kFloats, x + d)), kFloats, to + d);
}
/// to += x * y, likewise.
inline void add_product(std::int64_t columns, const float* x, const float* y, float* to) {
  for (std::int64_t d = 0; d < columns; d += kLanes) {
    hn::Store(
        hn::MulAdd(hn::Load(kFloats, x + d), hn::Load(kFloats, y + d), hn::Load(kFloats, to + d)),
        kFloats, to + d);
  }
}
HWY_INLINE float sum_of_lanes(Vector x) { return hn::GetLane(hn::SumOfLanes(kFloats, x)); }
/// x . y over whole vectors of `columns`.
inline float dot(std::int64_t columns, const float* x, const float* y) {
  Vector even = hn::Zero(kFloats), odd = hn::Zero(kFloats);
  const auto add = [&](std::int64_t d, Vector& sum) {
    sum = hn::MulAdd(hn::Load(kFloats, x + d), hn::Load(kFloats, y + d), sum);
  };
  for (std::int64_t d = 0; d < columns; d += 2 * kLanes) {
    add(d, even);
    if (d + kLanes < columns) add(d + kLanes, odd);
  }
  return sum_of_lanes(hn::Add(even, odd));
}
/// to[i] <- exp(x[i]), x <= 0, over whole vectors; `to` may be x.
inline void exp_row(std::int64_t columns, const float* x, float* to) {
  for (std::int64_t d = 0; d < columns; d += kLanes)
    hn::Store(exponential(hn::Load(kFloats, x + d)), kFloats, to + d);
}

/// The decay of a state over a chunk or a run: exp(log) in two floats. One would repeat its
/// rounding error chunk after chunk where the slopes are constant.
struct TwoFloats {
  float high, low;
};
inline TwoFloats exp_of(double log) {
  const double value = std::exp(log);
  const float high = static_cast<float>(value);
  return {high, static_cast<float>(value - static_cast<double>(high))};
}
/// A state decayed, at every level.
HWY_INLINE Vector decayed(Vector x, Vector high, Vector low) {
  return hn::MulAdd(high, x, hn::Mul(low, x));
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H
