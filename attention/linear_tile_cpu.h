#pragma once
// Products of a chunk's matrices, row-major float32 in padded rows, on the tiles of
// gemm_tile_cpu.h: whole, triangular, and solved by substitution. A triangular product reads
// nothing of the other triangle, so what lies there (later tokens, NaN) cannot show. Every element
// is one chain of multiply-adds in the order of the depth.

#include <algorithm>

#include "attention/linear_gemm_tile_cpu.h"

namespace longhaul::attention::avx2 {

/// Row stride of a matrix of so many columns: whole tiles, and an odd number of them, so that rows
/// fall into different cache sets.
constexpr std::int64_t padded(std::int64_t columns) {
  return ((columns + kTileColumns - 1) / kTileColumns | 1) * kTileColumns;
}

/// Does not own. 64-byte aligned rows.
struct Matrix {
  float* data = nullptr;
  std::int64_t ld = 0;
  float* row(std::int64_t i) const { return data + i * ld; }
  Matrix from_row(std::int64_t i) const { return {row(i), ld}; }
  Matrix from_column(std::int64_t i) const { return {data + i, ld}; }
};

/// Calls f(std::integral_constant<int, Rows>) for 1 to 6 rows.
template <class F>
inline void with_rows(std::int64_t rows, const F& f) {
  switch (rows) {
    case 6:
      return f(std::integral_constant<int, 6>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 2:
      return f(std::integral_constant<int, 2>());
    default:
      return f(std::integral_constant<int, 1>());
  }
}

/// C[rows, columns] (+)= A[rows, depth] B[depth, columns]; Operand::columns: A is given as its
/// transpose.
template <Operand operand, Into into>
inline void product(std::int64_t rows, std::int64_t columns, std::int64_t depth, Matrix a, Matrix b,
                    Matrix c) {
  for (std::int64_t column = 0; column < columns; column += kTileColumns) {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      multiply<operand, into>(std::min(kTileRows, rows - row),
                              operand == Operand::rows ? a.row(row) : a.data + row, a.ld,
                              b.data + column, depth, c.row(row) + column, c.ld, b.ld);
    }
  }
}

/// C <- the lower triangle of A[n, depth] B[depth, n], in whole tiles.
inline void lower_of_product(std::int64_t n, std::int64_t depth, Matrix a, Matrix b, Matrix c) {
  for (std::int64_t column = 0; column < n; column += kTileColumns) {
    for (std::int64_t row = column / kTileRows * kTileRows; row < n; row += kTileRows) {
      multiply<Operand::rows, Into::store>(std::min(kTileRows, n - row), a.row(row), a.ld,
                                           b.data + column, depth, c.row(row) + column, c.ld, b.ld);
    }
  }
}

/// Of 6 rows of 16 columns in registers.
template <int Rows>
struct TileSums {
  __m256 sum[Rows][2];

  void load(const float* c, std::int64_t ldc) {
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      sum[r][0] = _mm256_load_ps(c + r * ldc);
      sum[r][1] = _mm256_load_ps(c + r * ldc + 8);
    }
  }
  void store(float* c, std::int64_t ldc) const {
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      _mm256_store_ps(c + r * ldc, sum[r][0]);
      _mm256_store_ps(c + r * ldc + 8, sum[r][1]);
    }
  }
  /// += (or -=) a[r * step] times the row b, for rows [First, Last).
  template <int First, int Last, bool subtract>
  void add(const float* a, std::int64_t step, const float* b) {
    add_row<First, Last, subtract>(a, step, _mm256_load_ps(b), _mm256_load_ps(b + 8));
  }
  template <int First, int Last, bool subtract>
  void add_row(const float* a, std::int64_t step, __m256 b0, __m256 b1) {
#pragma GCC unroll 6
    for (int r = First; r < Last; ++r) {
      const __m256 x = _mm256_broadcast_ss(a + r * step);
      sum[r][0] = subtract ? _mm256_fnmadd_ps(x, b0, sum[r][0]) : _mm256_fmadd_ps(x, b0, sum[r][0]);
      sum[r][1] = subtract ? _mm256_fnmadd_ps(x, b1, sum[r][1]) : _mm256_fmadd_ps(x, b1, sum[r][1]);
    }
  }
};

/// Calls f(std::integral_constant<int, i>) for i = 0 .. N - 1.
template <int N, class F, int... I>
inline void unrolled(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
inline void unrolled(const F& f) {
  unrolled<N>(f, std::make_integer_sequence<int, N>());
}

/// C[n, columns] += tril(A) B.
inline void add_lower(std::int64_t n, std::int64_t columns, Matrix a, Matrix b, Matrix c) {
  for (std::int64_t column = 0; column < columns; column += kTileColumns) {
    for (std::int64_t row = 0; row < n; row += kTileRows) {
      with_rows(std::min(kTileRows, n - row), [&](auto count) {
        constexpr int kRows = count;
        TileSums<kRows> tile;
        tile.load(c.row(row) + column, c.ld);
        const float* from = a.row(row);
        const float* at = b.data + column;
        for (std::int64_t k = 0; k < row; ++k, at += b.ld)
          tile.template add<0, kRows, false>(from + k, a.ld, at);
        unrolled<kRows>([&](auto t) {
          tile.template add<t, kRows, false>(from + row + t, a.ld, at + t * b.ld);
        });
        tile.store(c.row(row) + column, c.ld);
      });
    }
  }
}

/// C[n, columns] += tril(A)^T B.
inline void add_lower_transposed(std::int64_t n, std::int64_t columns, Matrix a, Matrix b,
                                 Matrix c) {
  for (std::int64_t column = 0; column < columns; column += kTileColumns) {
    for (std::int64_t row = 0; row < n; row += kTileRows) {
      with_rows(std::min(kTileRows, n - row), [&](auto count) {
        constexpr int kRows = count;
        TileSums<kRows> tile;
        tile.load(c.row(row) + column, c.ld);
        const float* at = b.row(row) + column;
        unrolled<kRows>([&](auto t) {
          tile.template add<0, t + 1, false>(a.row(row + t) + row, 1, at + t * b.ld);
        });
        at += kRows * b.ld;
        for (std::int64_t k = row + kRows; k < n; ++k, at += b.ld)
          tile.template add<0, kRows, false>(a.row(k) + row, 1, at);
        tile.store(c.row(row) + column, c.ld);
      });
    }
  }
}

/// X[n, columns] <- (I + stril(A))^-1 X.
inline void solve_lower(std::int64_t n, std::int64_t columns, Matrix a, Matrix x) {
  for (std::int64_t column = 0; column < columns; column += kTileColumns) {
    for (std::int64_t row = 0; row < n; row += kTileRows) {
      with_rows(std::min(kTileRows, n - row), [&](auto count) {
        constexpr int kRows = count;
        TileSums<kRows> tile;
        tile.load(x.row(row) + column, x.ld);
        const float* from = a.row(row);
        const float* at = x.data + column;
        for (std::int64_t k = 0; k < row; ++k, at += x.ld)
          tile.template add<0, kRows, true>(from + k, a.ld, at);
        unrolled<kRows>([&](auto t) {
          tile.template add_row<t + 1, kRows, true>(from + row + t, a.ld, tile.sum[t][0],
                                                    tile.sum[t][1]);
        });
        tile.store(x.row(row) + column, x.ld);
      });
    }
  }
}

/// X[n, columns] <- (I + stril(A))^-T X.
inline void solve_lower_transposed(std::int64_t n, std::int64_t columns, Matrix a, Matrix x) {
  for (std::int64_t column = 0; column < columns; column += kTileColumns) {
    for (std::int64_t row = (n - 1) / kTileRows * kTileRows; row >= 0; row -= kTileRows) {
      with_rows(std::min(kTileRows, n - row), [&](auto count) {
        constexpr int kRows = count;
        TileSums<kRows> tile;
        tile.load(x.row(row) + column, x.ld);
        const float* at = x.row(row + kRows) + column;
        for (std::int64_t k = row + kRows; k < n; ++k, at += x.ld)
          tile.template add<0, kRows, true>(a.row(k) + row, 1, at);
        unrolled<kRows>([&](auto step) {
          constexpr int kFrom = kRows - 1 - step;
          tile.template add_row<0, kFrom, true>(a.row(row + kFrom) + row, 1, tile.sum[kFrom][0],
                                                tile.sum[kFrom][1]);
        });
        tile.store(x.row(row) + column, x.ld);
      });
    }
  }
}

}  // namespace longhaul::attention::avx2
