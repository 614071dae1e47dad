// Products of a chunk's matrices, row-major float32 in padded rows, on the tiles of tile_cpu.h:
// whole, triangular, and solved by substitution. A triangular product reads nothing of the other
// triangle, so what lies there (later tokens, NaN) cannot show. Every element is one chain of
// multiply-adds in the order of the depth. Compiled for each target: runtime/simd_cpu.h.

#if defined(LONGHAUL_ATTENTION_LINEAR_TILE_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_LINEAR_TILE_CPU_H
#undef LONGHAUL_ATTENTION_LINEAR_TILE_CPU_H
#else
#define LONGHAUL_ATTENTION_LINEAR_TILE_CPU_H
#endif

#include <algorithm>

#include "attention/tile_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

constexpr std::int64_t kLineFloats = 16;  // of a cache line

/// Row stride of a matrix of so many columns: whole cache lines, and an odd number of them, so that
/// rows fall into different cache sets.
constexpr std::int64_t padded(std::int64_t columns) {
  return (round_up(columns, kLineFloats) / kLineFloats | 1) * kLineFloats;
}

/// Does not own. Rows begin at cache lines.
struct Matrix {
  float* data = nullptr;
  std::int64_t ld = 0;
  float* row(std::int64_t i) const { return data + i * ld; }
  Matrix from_row(std::int64_t i) const { return {row(i), ld}; }
  Matrix from_column(std::int64_t i) const { return {data + i, ld}; }
};

constexpr std::int64_t tile_rows_at(std::int64_t row, std::int64_t rows) {
  return std::min<std::int64_t>(kTileRows, rows - row);
}

/// C[rows, columns] (+)= A[rows, depth] B[depth, columns]; Operand::columns: A is given as its
/// transpose.
template <Operand operand, Into into>
inline void product(std::int64_t rows, std::int64_t columns, std::int64_t depth, Matrix a, Matrix b,
                    Matrix c) {
  const Panels panels(columns);
  for (std::int64_t i = 0; i < panels.count(); ++i) {
    const Panel panel = panels[i];
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      multiply<operand, into>(tile_rows_at(row, rows), panel.vectors,
                              operand == Operand::rows ? a.row(row) : a.data + row, a.ld,
                              b.data + panel.column, b.ld, depth, c.row(row) + panel.column, c.ld);
    }
  }
}

/// C <- the lower triangle of A[n, depth] B[depth, n], each row to the end of its diagonal's
/// vector.
inline void lower_of_product(std::int64_t n, std::int64_t depth, Matrix a, Matrix b, Matrix c) {
  for (std::int64_t column = 0; column < n; column += kTileColumns) {
    for (std::int64_t row = column / kTileRows * kTileRows; row < n; row += kTileRows) {
      const std::int64_t rows = tile_rows_at(row, n),
                         columns = std::min(kTileColumns, row + rows - column);
      multiply<Operand::rows, Into::store>(rows, padded_to_vectors(columns) / kLanes, a.row(row),
                                           a.ld, b.data + column, b.ld, depth, c.row(row) + column,
                                           c.ld);
    }
  }
}

/// A tile of C in registers.
template <int Rows, int Vectors>
struct TileSums {
  Vector sum[Rows][Vectors];

  HWY_INLINE void load(const float* c, std::int64_t ldc) {
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = hn::Load(kFloats, c + r * ldc + v * kLanes);
    }
  }
  HWY_INLINE void store(float* c, std::int64_t ldc) const {
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) hn::Store(sum[r][v], kFloats, c + r * ldc + v * kLanes);
    }
  }
  /// += (or -=) a[r * step] times the row b, for rows [First, Last).
  template <int First, int Last, bool subtract>
  HWY_INLINE void add(const float* a, std::int64_t step, const float* b) {
    Vector row[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) row[v] = hn::Load(kFloats, b + v * kLanes);
    add_row<First, Last, subtract>(a, step, row);
  }
  template <int First, int Last, bool subtract>
  HWY_INLINE void add_row(const float* a, std::int64_t step, const Vector (&row)[Vectors]) {
#pragma GCC unroll 6
    for (int r = First; r < Last; ++r) {
      const Vector x = hn::Set(kFloats, a[r * step]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        sum[r][v] =
            subtract ? hn::NegMulAdd(x, row[v], sum[r][v]) : hn::MulAdd(x, row[v], sum[r][v]);
      }
    }
  }
};

/// Calls f(std::integral_constant<int, i>) for i = 0 .. N - 1.
template <int N, class F, int... I>
HWY_INLINE void unrolled(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
HWY_INLINE void unrolled(const F& f) {
  unrolled<N>(f, std::make_integer_sequence<int, N>());
}

enum class Order { rising, falling };
/// Calls f(rows, vectors, row, column), the first two constants, for the tiles of C[n, columns],
/// the rows of a panel in `order`.
template <Order order, class F>
HWY_INLINE void for_tiles(std::int64_t n, std::int64_t columns, const F& f) {
  const Panels panels(columns);
  const std::int64_t tiles = (n + kTileRows - 1) / kTileRows;
  for (std::int64_t p = 0; p < panels.count(); ++p) {
    const Panel panel = panels[p];
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t row = (order == Order::rising ? i : tiles - 1 - i) * kTileRows;
      with_constant<kTileVectors>(panel.vectors, [&](auto vectors) {
        with_constant<kTileRows>(tile_rows_at(row, n),
                                 [&](auto rows) { f(rows, vectors, row, panel.column); });
      });
    }
  }
}

/// C[n, columns] += tril(A) B.
[[gnu::noinline]] inline void add_lower(std::int64_t n, std::int64_t columns, Matrix a, Matrix b,
                                        Matrix c) {
  for_tiles<Order::rising>(n, columns, [&](auto rows, auto vectors, auto row, auto column) {
    constexpr int kRows = rows;
    TileSums<kRows, vectors> tile;
    tile.load(c.row(row) + column, c.ld);
    const float* from = a.row(row);
    const float* at = b.data + column;
    for (std::int64_t k = 0; k < row; ++k, at += b.ld)
      tile.template add<0, kRows, false>(from + k, a.ld, at);
    unrolled<kRows>(
        [&](auto t) { tile.template add<t, kRows, false>(from + row + t, a.ld, at + t * b.ld); });
    tile.store(c.row(row) + column, c.ld);
  });
}

/// C[n, columns] += tril(A)^T B.
[[gnu::noinline]] inline void add_lower_transposed(std::int64_t n, std::int64_t columns, Matrix a,
                                                   Matrix b, Matrix c) {
  for_tiles<Order::rising>(n, columns, [&](auto rows, auto vectors, auto row, auto column) {
    constexpr int kRows = rows;
    TileSums<kRows, vectors> tile;
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

/// X[n, columns] <- (I + stril(A))^-1 X.
[[gnu::noinline]] inline void solve_lower(std::int64_t n, std::int64_t columns, Matrix a,
                                          Matrix x) {
  for_tiles<Order::rising>(n, columns, [&](auto rows, auto vectors, auto row, auto column) {
    constexpr int kRows = rows;
    TileSums<kRows, vectors> tile;
    tile.load(x.row(row) + column, x.ld);
    const float* from = a.row(row);
    const float* at = x.data + column;
    for (std::int64_t k = 0; k < row; ++k, at += x.ld)
      tile.template add<0, kRows, true>(from + k, a.ld, at);
    unrolled<kRows>([&](auto t) {
      tile.template add_row<t + 1, kRows, true>(from + row + t, a.ld, tile.sum[t]);
    });
    tile.store(x.row(row) + column, x.ld);
  });
}

/// X[n, columns] <- (I + stril(A))^-T X.
[[gnu::noinline]] inline void solve_lower_transposed(std::int64_t n, std::int64_t columns, Matrix a,
                                                     Matrix x) {
  for_tiles<Order::falling>(n, columns, [&](auto rows, auto vectors, auto row, auto column) {
    constexpr int kRows = rows;
    TileSums<kRows, vectors> tile;
    tile.load(x.row(row) + column, x.ld);
    const float* at = x.row(row + kRows) + column;
    for (std::int64_t k = row + kRows; k < n; ++k, at += x.ld)
      tile.template add<0, kRows, true>(a.row(k) + row, 1, at);
    unrolled<kRows>([&](auto step) {
      constexpr int kFrom = kRows - 1 - step;
      tile.template add_row<0, kFrom, true>(a.row(row + kFrom) + row, 1, tile.sum[kFrom]);
    });
    tile.store(x.row(row) + column, x.ld);
  });
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_LINEAR_TILE_CPU_H
