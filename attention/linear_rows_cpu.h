// What the kernels of linear attention do with rows of float32 in whole vectors: read them out of
// views, transpose, scale, and sum. Columns past the end are zero. Compiled for each target:
// runtime/simd_cpu.h.

#if defined(LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H
#undef LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H
#else
#define LONGHAUL_ATTENTION_LINEAR_ROWS_CPU_H
#endif

#include <hwy/cache_control.h>

#include <cmath>

#include "attention/linear_tile_cpu.h"
#include "attention/pack_cpu.h"
#include "attention/softmax_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

/// to[row] <- scale times the rows. They come from memory: rows are asked for well before they are
/// read, which caches do not do by themselves across strides.
[[gnu::noinline]] inline void load_rows(const HeadRows& rows, float scale, Matrix to) {
  constexpr std::int64_t kAhead = 16;
  const Vector factor = hn::Set(kFloats, scale);
  const std::int64_t bytes = rows.bf16 ? 2 : 4;
  for (std::int64_t row = 0; row < rows.count; ++row) {
    const std::byte* ahead = rows.data + (row + kAhead) * rows.stride * bytes;
    for (std::int64_t at = 0; at < rows.dim * bytes; at += 64) hwy::Prefetch(ahead + at);
    for (std::int64_t d = 0; d < rows.dim; d += kLanes)
      hn::Store(hn::Mul(load_row(kFloats, rows, row, d), factor), kFloats, to.row(row) + d);
  }
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

/// Four columns of every fourth row from `first` on, one after another; where not `whole`, rows
/// from `count` on are zero.
template <bool whole, class Tag>
HWY_INLINE hn::Vec<Tag> load_fours(Tag tag, Matrix from, std::int64_t first, std::int64_t count) {
  if constexpr (hn::MaxLanes(Tag()) == 4) {
    return whole || first < count ? hn::Load(tag, from.row(first)) : hn::Zero(tag);
  } else {
    const hn::Half<Tag> half;
    constexpr auto kRows = static_cast<std::int64_t>(hn::MaxLanes(Tag())) / 2;
    return hn::Combine(tag, load_fours<whole>(half, from, first + kRows, count),
                       load_fours<whole>(half, from, first, count));
  }
}

/// to[columns, a vector] <- from[count, columns], zeros past its end.
template <bool whole>
HWY_INLINE void transpose_vector(std::int64_t count, std::int64_t columns, Matrix from, Matrix to) {
  for (std::int64_t column = 0; column < columns; column += 4) {
    Vector r[4];
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < 4; ++i)
      r[i] = load_fours<whole>(kFloats, from.from_column(column), i, count);
    transpose_squares(r);
    const std::int64_t left = std::min<std::int64_t>(4, columns - column);
    for (std::int64_t i = 0; i < left; ++i) hn::Store(r[i], kFloats, to.row(column + i));
  }
}

/// to[columns, rows] <- from[rows, columns], zeros up to whole vectors of rows.
[[gnu::noinline]] inline void transpose(std::int64_t rows, std::int64_t columns, Matrix from,
                                        Matrix to) {
  std::int64_t row = 0;
  for (; row + kLanes <= rows; row += kLanes)
    transpose_vector<true>(kLanes, columns, from.from_row(row), to.from_column(row));
  if (row < rows)
    transpose_vector<false>(rows - row, columns, from.from_row(row), to.from_column(row));
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
