// Products in float32: of float32, and of bfloat16 widened as it is packed (exact products, fp32
// sums) where no instructions multiply it faster. Loops as in Goto and van de Geijn 2008: c is cut
// into tiles, each computed by one thread; for each block of the depth, b's part of the tile is
// packed into panels of the inner loop's width (they stay in L2), then rows of a stream by. An
// element's sum goes over its depth in blocks of kDepth, in order, wherever it lies in whichever
// tile, so the tiles may be cut by the number of threads. Compiled for AVX2 and AVX-512.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/matmul_cpu.cpp"
#include "runtime/simd_cpu.h"

#include <omp.h>

#include <algorithm>

#include "runtime/float_cpu.h"
#include "runtime/ops/checks.h"
#include "runtime/ops/matmul_impl.h"
#include "runtime/tile_cpu.h"

#ifndef LONGHAUL_RUNTIME_OPS_MATMUL_CPU_ONCE
#define LONGHAUL_RUNTIME_OPS_MATMUL_CPU_ONCE
namespace longhaul::runtime::ops::detail {
namespace {

constexpr std::int64_t kMostDepth = 512;  // of a block: more is cut into blocks of at most kDepth
constexpr std::int64_t kDepth = 384;
constexpr std::int64_t kMostRows = 1536;  // of a tile
constexpr std::int64_t kGroupRows = 8;    // of a packed transpose, for each of 6 that count

constexpr std::int64_t parts(std::int64_t n, std::int64_t of) { return (n + of - 1) / of; }

/// Of all blocks but the last.
std::int64_t block_depth(std::int64_t depth) {
  return depth <= kMostDepth ? depth : parts(depth, parts(depth, kDepth));
}

/// What a thread works on at once.
struct Blocking {
  std::int64_t cols;         ///< of a tile, at most
  std::int64_t packed;       ///< floats of b: in L2
  std::int64_t row_step;     ///< rows of a
  std::int64_t summed_rows;  ///< of a tile, at most, whose sums are kept apart for a bfloat16 c
};
constexpr Blocking kLarge{512, 384 * 512, 48, 192}, kSmall{64, kMostDepth * 64, 24, 48};
static_assert(4 * (kSmall.row_step / 6 * kGroupRows * kMostDepth + kSmall.packed +
                   kSmall.summed_rows * kSmall.cols) <=
              kSmallMatmulScratchBytes);
const Blocking& blocking_of(const Product& product) {
  return product.multiplications() < kLargeProduct ? kSmall : kLarge;
}

/// The floats that a thread takes for it.
struct TileScratch {
  std::int64_t of_a, of_b, of_c;
  std::int64_t floats() const { return of_a + of_b + of_c; }
};
TileScratch scratch_of(const Blocking& blocking, std::int64_t depth, std::int64_t cols, DType c) {
  constexpr std::int64_t kPanel = 64;  // at every level
  const std::int64_t width = std::min(blocking.cols, parts(cols, kPanel) * kPanel);
  return {blocking.row_step / 6 * kGroupRows * block_depth(depth),
          std::min(blocking.packed, block_depth(depth) * width),
          c == DType::float32 ? 0 : blocking.summed_rows * width};
}
TileScratch scratch_of(const Product& product) {
  return scratch_of(blocking_of(product), product.depth(), product.cols(), product.c.dtype());
}

}  // namespace
}  // namespace longhaul::runtime::ops::detail
#endif

HWY_BEFORE_NAMESPACE();
namespace longhaul::runtime::ops::detail::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
namespace inner = runtime::HWY_NAMESPACE;
using inner::Into;
using inner::kFloats;
using inner::kLanes;
using inner::kTileColumns;
using inner::kTileRows;
using inner::load;
using inner::Operand;

/// Floats from `from` on, widened, then zeros up to `padded`.
template <class T>
HWY_INLINE void copy_row(const T* from, std::int64_t count, std::int64_t padded, float* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(load(kFloats, from + i), kFloats, to + i);
  for (; i < count; ++i) to[i] = to_float(from[i]);
  for (; i < padded; ++i) to[i] = 0;
}

/// to[k * kTileColumns + c] = from[c * leading + k], zeros where c is no column.
template <class T>
void pack_transposed(const T* from, std::int64_t leading, std::int64_t depth, std::int64_t cols,
                     float* to) {
  const hn::FixedTag<float, 4> four;
  std::int64_t col = 0;
  for (; col + 4 <= cols; col += 4) {
    const T* line = from + col * leading;
    std::int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
      const auto l0 = load(four, line + k), l1 = load(four, line + leading + k),
                 l2 = load(four, line + 2 * leading + k), l3 = load(four, line + 3 * leading + k);
      const auto low02 = hn::InterleaveLower(four, l0, l2),
                 low13 = hn::InterleaveLower(four, l1, l3),
                 up02 = hn::InterleaveUpper(four, l0, l2), up13 = hn::InterleaveUpper(four, l1, l3);
      float* out = to + k * kTileColumns + col;
      hn::StoreU(hn::InterleaveLower(four, low02, low13), four, out);
      hn::StoreU(hn::InterleaveUpper(four, low02, low13), four, out + kTileColumns);
      hn::StoreU(hn::InterleaveLower(four, up02, up13), four, out + 2 * kTileColumns);
      hn::StoreU(hn::InterleaveUpper(four, up02, up13), four, out + 3 * kTileColumns);
    }
    for (; k < depth; ++k) {
      for (std::int64_t i = 0; i < 4; ++i)
        to[k * kTileColumns + col + i] = to_float(line[i * leading + k]);
    }
  }
  for (; col < kTileColumns; ++col) {
    for (std::int64_t k = 0; k < depth; ++k)
      to[k * kTileColumns + col] = col < cols ? to_float(from[col * leading + k]) : 0;
  }
}

constexpr std::int64_t kAhead = 8;  // lines of a matrix are far apart: no prefetcher sees the next
/// Of `count` elements.
template <class T>
HWY_INLINE void prefetch(const T* line, std::int64_t count) {
  constexpr std::int64_t kStep = 64 / static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t i = 0; i < count; i += kStep) __builtin_prefetch(line + i);
}

/// b's rows [at, at + depth) and columns [col, col + cols) as panels of kTileColumns, one behind
/// the other.
template <class T>
void pack_b(const MatrixOperand& b, std::int64_t at, std::int64_t depth, std::int64_t col,
            std::int64_t cols, float* to) {
  const T* from = b.view.as<T>() + offset_of(b, at, col);
  const std::int64_t panel = depth * kTileColumns;
  if (b.transposed) {
    for (std::int64_t c = 0; c < cols; c += kTileColumns, to += panel)
      pack_transposed(from + c * b.leading, b.leading, depth, std::min(kTileColumns, cols - c), to);
    return;
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    const T* line = from + k * b.leading;
    if (k + kAhead < depth) prefetch(line + kAhead * b.leading, cols);
    float* out = to + k * kTileColumns;
    for (std::int64_t c = 0; c < cols; c += kTileColumns, out += panel)
      copy_row(line + c, std::min(kTileColumns, cols - c), kTileColumns, out);
  }
}

/// Rows of a as the inner loop reads them: groups of kTileRows, `step` floats apart.
struct RowsOfA {
  const float* data;
  std::int64_t lda, step;
  bool columns;   ///< Operand::columns
  bool in_place;  ///< not in scratch
};

/// a's rows [row, row + rows) and columns [at, at + depth): in place, or in `scratch`.
template <class T>
RowsOfA rows_of(const MatrixOperand& a, std::int64_t row, std::int64_t rows, std::int64_t at,
                std::int64_t depth, float* scratch) {
  const T* from = a.view.as<T>() + offset_of(a, row, at);
  if (!a.transposed) {
    if constexpr (std::is_same_v<T, float>)
      return {from, a.leading, kTileRows * a.leading, false, true};
    for (std::int64_t r = 0; r < rows; ++r)
      copy_row(from + r * a.leading, depth, depth, scratch + r * depth);
    return {scratch, depth, kTileRows * depth, false, false};
  }
  const hn::FixedTag<float, 8> eight;
  const std::int64_t group = kGroupRows * depth, left = a.view.size(0) - row;
  for (std::int64_t k = 0; k < depth; ++k) {
    const T* line = from + k * a.leading;
    if (k + kAhead < depth) prefetch(line + kAhead * a.leading, rows);
    float* to = scratch + k * kGroupRows;
    std::int64_t r = 0;
    for (; r < rows && r + kGroupRows <= left; r += kTileRows, to += group)
      hn::StoreU(load(eight, line + r), eight, to);
    for (; r < rows; r += kTileRows, to += group) {
      for (std::int64_t i = 0; i < std::min<std::int64_t>(kTileRows, rows - r); ++i)
        to[i] = to_float(line[r + i]);
    }
  }
  return {scratch, kGroupRows, group, true, false};
}

/// Where a tile's sums go, and what they are added to.
struct Sums {
  float* data;
  std::int64_t leading;
  const float* addend;  ///< of the tile, in c's place or elsewhere; or none
  std::int64_t leading_addend;
};

/// One group of rows of one panel.
void multiply_group(const RowsOfA& a, const float* a_group, const float* panel, std::int64_t depth,
                    std::int64_t rows, std::int64_t cols, const Sums& sums) {
  const std::int64_t vectors = (cols + kLanes - 1) / kLanes;
  const auto product = [&]<Into into>(float* c, std::int64_t leading) {
    (a.columns ? inner::multiply<Operand::columns, into>
               : inner::multiply<Operand::rows, into>)(rows, vectors, a_group, a.lda, panel,
                                                       kTileColumns, depth, c, leading);
  };
  if (cols % kLanes != 0) {  // stores are whole vectors
    alignas(64) float edge[kTileRows * kTileColumns];
    product.template operator()<Into::store>(edge, kTileColumns);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        const float sum = edge[r * kTileColumns + c];
        sums.data[r * sums.leading + c] =
            sums.addend == nullptr ? sum : sums.addend[r * sums.leading_addend + c] + sum;
      }
    }
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r) {  // while the product is summed in registers
    for (std::int64_t c = 0; c < cols; c += 16)
      __builtin_prefetch(sums.data + r * sums.leading + c, 1);
  }
  if (sums.addend == nullptr)
    return product.template operator()<Into::store>(sums.data, sums.leading);
  for (std::int64_t r = 0; sums.addend != sums.data && r < rows; ++r)
    copy_row(sums.addend + r * sums.leading_addend, cols, cols, sums.data + r * sums.leading);
  product.template operator()<Into::add>(sums.data, sums.leading);
}

/// Of the group of rows behind that of row r, the share that falls to the panel of column c.
HWY_INLINE void prefetch_next(const RowsOfA& a, std::int64_t r, std::int64_t c, std::int64_t rows,
                              std::int64_t depth, std::int64_t cols) {
  const std::int64_t share = inner::round_up(parts(depth * kTileColumns, cols), 16),
                     begin = c / kTileColumns * share, count = std::min(share, depth - begin);
  for (std::int64_t next = r + kTileRows; next < std::min(rows, r + 2 * kTileRows); ++next)
    prefetch(a.data + next * a.lda + begin, count);
}

/// The tile's sums, in fp32.
template <class A, class B>
void sum_tile(const Product& product, const TileOfC& tile, const Sums& sums, float* scratch) {
  const std::int64_t row_step = blocking_of(product).row_step;
  float* b_panels = scratch + scratch_of(product).of_a;
  const std::int64_t step = block_depth(product.depth());
  for (std::int64_t at = 0; at < product.depth(); at += step) {
    const std::int64_t depth = std::min(step, product.depth() - at);
    pack_b<B>(product.b, at, depth, tile.col, tile.cols, b_panels);
    const float* addend = at > 0 ? sums.data : sums.addend;
    const std::int64_t leading_addend = at > 0 ? sums.leading : sums.leading_addend;
    for (std::int64_t begin = 0; begin < tile.rows; begin += row_step) {
      const std::int64_t rows = std::min(row_step, tile.rows - begin);
      const RowsOfA a = rows_of<A>(product.a, tile.row + begin, rows, at, depth, scratch);
      for (std::int64_t r = 0; r < rows; r += kTileRows) {
        for (std::int64_t c = 0; c < tile.cols; c += kTileColumns) {
          const std::int64_t row = begin + r;
          if (a.in_place) prefetch_next(a, r, c, rows, depth, tile.cols);
          multiply_group(
              a, a.data + r / kTileRows * a.step, b_panels + c * depth, depth,
              std::min<std::int64_t>(kTileRows, rows - r), std::min(kTileColumns, tile.cols - c),
              {sums.data + row * sums.leading + c, sums.leading,
               addend == nullptr ? nullptr : addend + row * leading_addend + c, leading_addend});
        }
      }
    }
  }
}

void sum_tile_of(const Product& product, const TileOfC& tile, const Sums& sums, float* scratch) {
  with_activation("matmul", product.a.view.dtype(), [&]<class A>() {
    with_activation("matmul", product.b.view.dtype(),
                    [&]<class B>() { sum_tile<A, B>(product, tile, sums, scratch); });
  });
}

template <class T>
void store_rows(const Product& product, const TileOfC& tile, const float* sums,
                std::int64_t leading_sums) {
  const MatrixOperand& addend = product.addend;
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    const float* in = sums + row * leading_sums;
    T* out = product.c.as<T>() + (tile.row + row) * product.leading_c + tile.col;
    const T* added = product.adds()
                         ? addend.view.as<T>() + (tile.row + row) * addend.leading + tile.col
                         : nullptr;
    const auto sum = [&](auto tag, std::int64_t col) {
      const auto x = hn::LoadU(tag, in + col);
      return added == nullptr ? x : hn::Add(load(tag, added + col), x);
    };
    std::int64_t col = 0;
    for (; col + kLanes <= tile.cols; col += kLanes)
      inner::store(sum(kFloats, col), kFloats, out + col);
    const hn::FixedTag<float, 1> one;
    for (; col < tile.cols; ++col) inner::store(sum(one, col), one, out + col);
  }
}

void store_tile_of_c(const Product& product, const TileOfC& tile, const float* sums,
                     std::int64_t leading_sums) {
  with_activation("matmul", product.c.dtype(),
                  [&]<class T>() { store_rows<T>(product, tile, sums, leading_sums); });
}

void multiply_tile_of_c(const Product& product, const TileOfC& tile, float* scratch) {
  if (product.c.dtype() == DType::float32) {
    const MatrixOperand& addend = product.addend;
    return sum_tile_of(
        product, tile,
        {product.c.as<float>() + tile.row * product.leading_c + tile.col, product.leading_c,
         product.adds() ? addend.view.as<float>() + tile.row * addend.leading + tile.col : nullptr,
         addend.leading},
        scratch);
  }
  const TileScratch parts_of_scratch = scratch_of(product);
  float* sums = scratch + parts_of_scratch.of_a + parts_of_scratch.of_b;
  sum_tile_of(product, tile, {sums, tile.cols, nullptr, 0}, scratch);
  store_tile_of_c(product, tile, sums, tile.cols);
}

}  // namespace
}  // namespace longhaul::runtime::ops::detail::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::runtime::ops::detail {
namespace {

HWY_EXPORT(multiply_tile_of_c);
HWY_EXPORT(store_tile_of_c);

struct Tiling {
  std::int64_t rows = 0, cols = 0;  ///< of a tile
};

/// The tiles that so many threads are through with first: they take a cycle for 32 multiplications,
/// and one to pack an element, b's for each row of tiles, a's for each column.
Tiling tiling_of(const Product& product, int threads) {
  constexpr std::int64_t kPanel = 64;    // columns: whole panels at every level
  constexpr std::int64_t kRowStep = 48;  // whole groups of rows
  const Blocking& blocking = blocking_of(product);
  const std::int64_t most_rows =
      product.c.dtype() == DType::float32 ? kMostRows : blocking.summed_rows;
  const std::int64_t most_cols =
      std::min(blocking.cols, blocking.packed / block_depth(product.depth()) / kPanel * kPanel);
  Tiling best;
  double least = 0;
  for (std::int64_t rows = kRowStep; rows <= most_rows; rows += kRowStep) {
    for (std::int64_t cols = kPanel; cols <= most_cols; cols += kPanel) {
      const std::int64_t row_tiles = parts(product.rows(), rows),
                         col_tiles = parts(product.cols(), cols);
      const std::int64_t tiles = row_tiles * col_tiles, rounds = parts(tiles, threads);
      const auto of = [](std::int64_t a, std::int64_t b) { return static_cast<double>(a * b); };
      const double time = static_cast<double>(rounds) / static_cast<double>(tiles) *
                          (of(product.rows(), product.cols()) / 32 + of(row_tiles, product.cols()) +
                           of(col_tiles, product.rows()));
      if (best.rows != 0 && time >= least) continue;
      least = time;
      best = {parts(parts(product.rows(), row_tiles), 6) * 6, cols};
    }
  }
  return best;
}

void multiply(const Product& product, const Tiling& tiling, float* scratch,
              std::int64_t scratch_step, bool parallel) {
  const auto kernel = &LONGHAUL_DISPATCH(multiply_tile_of_c);
  const std::int64_t col_tiles = parts(product.cols(), tiling.cols),
                     tiles = parts(product.rows(), tiling.rows) * col_tiles;
#pragma omp parallel for schedule(dynamic) if (parallel)
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t row = i / col_tiles * tiling.rows, col = i % col_tiles * tiling.cols;
    kernel(product,
           {row, col, std::min(tiling.rows, product.rows() - row),
            std::min(tiling.cols, product.cols() - col)},
           scratch + omp_get_thread_num() * scratch_step);
  }
}

}  // namespace

void store_tile(const Product& product, const TileOfC& tile, const float* sums,
                std::int64_t leading_sums) {
  LONGHAUL_DISPATCH(store_tile_of_c)(product, tile, sums, leading_sums);
}

void cpu_matmul(const MatrixOperand& a, const MatrixOperand& b, const MatrixOperand& addend,
                TensorView c, std::int64_t leading_c, const Stream& stream) {
  const Product product{a, b, addend, c, leading_c};
  if (onednn_takes(product)) return onednn_matmul(product, stream);
  const bool parallel = product.multiplications() >= kParallelProduct;
  const int threads = parallel ? stream.threads() : 1;
  const std::int64_t step = scratch_of(product).floats();
  const Buffer scratch = stream.allocate(step * threads * static_cast<std::int64_t>(sizeof(float)));
  auto* floats = reinterpret_cast<float*>(scratch.data());
  stream.cpu_task([product, tiling = tiling_of(product, threads), floats, step, parallel] {
    multiply(product, tiling, floats, step, parallel);
  });
}

}  // namespace longhaul::runtime::ops::detail

namespace longhaul::runtime::ops {

std::int64_t cpu_matmul_scratch_bytes(DType dtype, int threads, std::int64_t multiplications) {
  using namespace detail;
  if (multiplications < kLargeProduct) return 0;
  const std::int64_t own = scratch_of(kLarge, kDepth, kLarge.cols, dtype).floats() * threads *
                           static_cast<std::int64_t>(sizeof(float));
  if (dtype == DType::float32 || !onednn_multiplies_bfloat16()) return own;
  return std::max(own, onednn_scratch_bytes(threads));
}

}  // namespace longhaul::runtime::ops
#endif  // HWY_ONCE
