#pragma once
// What the CUDA kernels of linear attention are made of: tiles of 64 x 64 floats in shared memory
// (tokens of a chunk, key dims or value dims) and their products, a block of 256 threads each of
// which holds 4 x 4 sums. Every sum is one chain of IEEE multiply-adds in the order of its depth. A
// triangular product does not look at the other triangle, so what lies there (later tokens, NaN)
// cannot show. Private to attention/.

#include "attention/launch.cuh"
#include "attention/linear_device_impl.h"

namespace longhaul::attention::detail {

constexpr int kEdge = static_cast<int>(kLinearChunk);
constexpr int kTileThreads = 256;
constexpr int kSide = 4;  // of a thread's sums
constexpr int kTileRow = kEdge + 4;
constexpr int kTileFloats = kEdge * kTileRow;

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
/// The thread's first row and column of a product.
__device__ inline int sums_row() { return thread() / (kEdge / kSide) * kSide; }
__device__ inline int sums_column() { return thread() % (kEdge / kSide) * kSide; }
/// Where a thread works on a column alone: it, and one of four parts of the tokens.
constexpr int kPart = kEdge / (kTileThreads / kEdge);  // tokens
__device__ inline int own_column() { return thread() % kEdge; }
__device__ inline int own_part() { return thread() / kEdge; }

using Sums = float[kSide][kSide];
__device__ inline void clear(Sums& sums) {
#pragma unroll
  for (int r = 0; r < kSide; ++r) {
#pragma unroll
    for (int c = 0; c < kSide; ++c) sums[r][c] = 0.0f;
  }
}

/// In shared memory. Rows r, r + 4, r + 8, ... lie together: then both ways to read a tile by 16
/// bytes, along a row and down its rows, go to different banks.
struct Tile {
  float* data;
  __device__ float* row(int r) const {
    return data + ((r % kSide) * (kEdge / kSide) + r / kSide) * kTileRow;
  }
  __device__ float& at(int r, int c) const { return row(r)[c]; }
};
__device__ inline Tile shared_tile(int i) { return {dynamic_shared() + i * kTileFloats}; }
constexpr std::int64_t tiles_bytes(int count) {
  return std::int64_t{count} * kTileFloats * static_cast<std::int64_t>(sizeof(float));
}

/// tile <- of(row, value) of `rows` x `columns` values, zero elsewhere.
template <class T, class Of>
__device__ void load(Tile tile, const T* from, std::int64_t row_stride, int rows, int columns,
                     const Of& of) {
  const int column = own_column();
  for (int row = own_part(); row < kEdge; row += kTileThreads / kEdge) {
    const bool inside = row < rows && column < columns;
    tile.at(row, column) =
        inside ? of(row, runtime::detail::load_float(from[row * row_stride + column])) : 0.0f;
  }
}
template <class T>
__device__ void load(Tile tile, const T* from, std::int64_t row_stride, int rows, int columns) {
  load(tile, from, row_stride, rows, columns, [](int, float x) { return x; });
}

/// tile <- the threads' sums; of(row, column, sum).
template <class Of>
__device__ void store(Tile tile, const Sums& sums, const Of& of) {
#pragma unroll
  for (int r = 0; r < kSide; ++r) {
#pragma unroll
    for (int c = 0; c < kSide; ++c) {
      const int row = sums_row() + r, column = sums_column() + c;
      tile.at(row, column) = of(row, column, sums[r][c]);
    }
  }
}
/// to <- by * sums, of `rows` x `columns` that there are; or += where `add`.
__device__ inline void store(float* to, std::int64_t row_stride, int rows, int columns, float by,
                             const Sums& sums, bool add = false) {
#pragma unroll
  for (int r = 0; r < kSide; ++r) {
#pragma unroll
    for (int c = 0; c < kSide; ++c) {
      const int row = sums_row() + r, column = sums_column() + c;
      if (row >= rows || column >= columns) continue;
      float& at = to[row * row_stride + column];
      at = add ? at + by * sums[r][c] : by * sums[r][c];
    }
  }
}

/// How an operand's tile is read: the depth of the product along its rows or down its rows.
enum class Read { along, down };
/// Which depths a row of the product has: all, those up to the row, those from the row on.
enum class Depths { all, up_to_row, from_row };

/// values[u][i] <- of row (or column) `first` + i of the product, at depth k + u.
template <Read read>
__device__ void load_operand(Tile tile, int first, int k, float (&values)[kSide][kSide]) {
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const float4 x = read == Read::along
                         ? *reinterpret_cast<const float4*>(tile.row(first + i) + k)
                         : *reinterpret_cast<const float4*>(tile.row(k + i) + first);
    const float four[kSide] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int u = 0; u < kSide; ++u) {
      if (read == Read::along) {
        values[u][i] = four[u];
      } else {
        values[i][u] = four[u];
      }
    }
  }
}

/// Four depths from k on; `depths` of them where k is the thread's own first row.
template <Read a_read, Read b_read, Depths depths>
__device__ void add_depths(Tile a, Tile b, int k, Sums& sums) {
  float x[kSide][kSide], y[kSide][kSide];
  load_operand<a_read>(a, sums_row(), k, x);
  load_operand<b_read>(b, sums_column(), k, y);
#pragma unroll
  for (int u = 0; u < kSide; ++u) {
#pragma unroll
    for (int r = 0; r < kSide; ++r) {
      if (depths == Depths::up_to_row ? u > r : depths == Depths::from_row && u < r) continue;
#pragma unroll
      for (int c = 0; c < kSide; ++c) sums[r][c] = fmaf(x[u][r], y[u][c], sums[r][c]);
    }
  }
}

/// sums += A B over a depth of 64.
template <Read a_read, Read b_read, Depths depths = Depths::all>
__device__ void add_product(Tile a, Tile b, Sums& sums) {
  const int row = sums_row();
  if (depths == Depths::from_row) add_depths<a_read, b_read, depths>(a, b, row, sums);
  const int begin = depths == Depths::from_row ? row + kSide : 0,
            end = depths == Depths::up_to_row ? row : kEdge;
#pragma unroll 1
  for (int k = begin; k < end; k += kSide) add_depths<a_read, b_read, Depths::all>(a, b, k, sums);
  if (depths == Depths::up_to_row) add_depths<a_read, b_read, depths>(a, b, row, sums);
}

/// Of the tile of 64 that begins at `first` of `size`.
__device__ inline int extent(int size, int first) {
  return size - first < kEdge ? size - first : kEdge;
}

}  // namespace longhaul::attention::detail
