#pragma once
// What the kernels of linear attention do with rows of float32 in whole tiles of columns: read them
// out of views, transpose, scale, and sum. Columns past the end are zero.

#include <cmath>

#include "attention/linear_pack_cpu.h"
#include "attention/linear_tile_cpu.h"
#include "attention/linear_softmax_cpu.h"

namespace longhaul::attention::avx2 {

/// to[row] <- scale times the rows.
inline void load_rows(const Rows& rows, float scale, Matrix to) {
  const __m256 factor = _mm256_set1_ps(scale);
  for (std::int64_t row = 0; row < rows.count; ++row) {
    for (std::int64_t d = 0; d < round_up(rows.dim, kTileColumns); d += 8)
      _mm256_store_ps(to.row(row) + d, _mm256_mul_ps(load8(rows, row, d), factor));
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

/// to[columns, rows] <- from[rows, columns], zeros up to whole tiles of both.
inline void transpose(std::int64_t rows, std::int64_t columns, Matrix from, Matrix to) {
  for (std::int64_t row = 0; row < round_up(rows, kTileColumns); row += 8) {
    for (std::int64_t column = 0; column < columns; column += 8) {
      __m256 block[8];
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < 8; ++i) {
        block[i] =
            row + i < rows ? _mm256_load_ps(from.row(row + i) + column) : _mm256_setzero_ps();
      }
      transpose8(block);
      const std::int64_t left = std::min<std::int64_t>(8, columns - column);
      for (std::int64_t i = 0; i < left; ++i) _mm256_store_ps(to.row(column + i) + row, block[i]);
    }
  }
}

inline void clear(std::int64_t rows, Matrix matrix) {
  std::fill_n(matrix.data, rows * matrix.ld, 0.0f);
}

/// Row i of a lower triangle: the columns from `begin` on, i or i + 1, to the end of the
/// diagonal's tile <- 0.
inline void clear_right(float* row, std::int64_t i, std::int64_t begin) {
  std::fill(row + begin, row + round_up(i + 1, kTileColumns), 0.0f);
}

/// to <- by * x over whole tiles of `columns`; `to` may be x.
inline void scaled(std::int64_t columns, float by, const float* x, float* to) {
  const __m256 factor = _mm256_set1_ps(by);
  for (std::int64_t d = 0; d < columns; d += 8)
    _mm256_store_ps(to + d, _mm256_mul_ps(factor, _mm256_load_ps(x + d)));
}
/// to <- x * y, likewise.
inline void multiplied(std::int64_t columns, const float* x, const float* y, float* to) {
  for (std::int64_t d = 0; d < columns; d += 8)
    _mm256_store_ps(to + d, _mm256_mul_ps(_mm256_load_ps(x + d), _mm256_load_ps(y + d)));
}
/// to += x, likewise.
inline void added(std::int64_t columns, const float* x, float* to) {
  for (std::int64_t d = 0; d < columns; d += 8)
    _mm256_store_ps(to + d, _mm256_add_ps(_mm256_load_ps(to + d), _mm256_load_ps(x + d)));
}
/// to += x * y, likewise.
inline void add_product(std::int64_t columns, const float* x, const float* y, float* to) {
  for (std::int64_t d = 0; d < columns; d += 8) {
    _mm256_store_ps(to + d, _mm256_fmadd_ps(_mm256_load_ps(x + d), _mm256_load_ps(y + d),
                                            _mm256_load_ps(to + d)));
  }
}
/// x . y over whole tiles of `columns`.
inline float dot(std::int64_t columns, const float* x, const float* y) {
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  for (std::int64_t d = 0; d < columns; d += kTileColumns) {
    low = _mm256_fmadd_ps(_mm256_load_ps(x + d), _mm256_load_ps(y + d), low);
    high = _mm256_fmadd_ps(_mm256_load_ps(x + d + 8), _mm256_load_ps(y + d + 8), high);
  }
  return sum8(_mm256_add_ps(low, high));
}
/// to[i] <- exp(x[i]), x <= 0, over whole vectors; `to` may be x.
inline void exp_row(std::int64_t columns, const float* x, float* to) {
  for (std::int64_t d = 0; d < columns; d += 8)
    _mm256_storeu_ps(to + d, exp8(_mm256_loadu_ps(x + d)));
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
inline __m256 decay8(__m256 x, __m256 high, __m256 low) {
  return _mm256_fmadd_ps(high, x, _mm256_mul_ps(low, x));
}

}  // namespace longhaul::attention::avx2
