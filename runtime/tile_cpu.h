// The one inner loop of the CPU's products: C[rows, columns] (+)= A[rows, depth] B[depth, columns]
// in registers, up to 6 rows by 4 vectors of 16 floats (AVX-512: 24 of 32 registers hold sums) or 2
// of 8 (AVX2: 12 of 16). B is a packed panel, or columns of a matrix of row stride `ldb`, aligned
// to a vector; A is read by broadcasts, either row by row or transposed, so P and P^T need no copy.
// C has padded columns: every store is whole. Compiled for each target: runtime/simd_cpu.h.

#if defined(LONGHAUL_RUNTIME_TILE_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_RUNTIME_TILE_CPU_H
#undef LONGHAUL_RUNTIME_TILE_CPU_H
#else
#define LONGHAUL_RUNTIME_TILE_CPU_H
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "runtime/simd_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::runtime::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr hn::ScalableTag<float> kFloats;
using Vector = hn::Vec<decltype(kFloats)>;
constexpr std::int64_t kLanes = HWY_MAX_BYTES / 4;

constexpr int kTileRows = 6;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;
constexpr std::int64_t kTileColumns = kTileVectors * kLanes;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }
/// So many floats in whole vectors.
constexpr std::int64_t padded_to_vectors(std::int64_t n) { return round_up(n, kLanes); }

/// store: C = A B. add: C += A B, the product summed on its own first. chain: C is where the sum
/// starts.
enum class Into { store, add, chain };
/// A(r, k) = a[r * lda + k], or transposed a[k * lda + r].
enum class Operand { rows, columns };

template <int Rows, int Vectors, Operand operand, Into into>
inline void multiply_tile(const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                          std::int64_t depth, float* c, std::int64_t ldc) {
  Vector sum[Rows][Vectors];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      sum[r][v] =
          into == Into::chain ? hn::LoadU(kFloats, c + r * ldc + v * kLanes) : hn::Zero(kFloats);
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector row[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) row[v] = hn::Load(kFloats, b + v * kLanes);
    b += ldb;
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const Vector x = hn::Set(kFloats, operand == Operand::rows ? a[r * lda] : a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = hn::MulAdd(x, row[v], sum[r][v]);
    }
    a += operand == Operand::rows ? 1 : lda;
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      float* at = c + r * ldc + v * kLanes;
      hn::StoreU(into == Into::add ? hn::Add(sum[r][v], hn::LoadU(kFloats, at)) : sum[r][v],
                 kFloats, at);
    }
  }
}

/// Calls f(std::integral_constant<int, n>) for n in 1 .. Most.
template <int Most, class F>
HWY_INLINE void with_constant(std::int64_t n, const F& f) {
  if constexpr (Most == 1) {
    f(std::integral_constant<int, 1>());
  } else if (n == Most) {
    f(std::integral_constant<int, Most>());
  } else {
    with_constant<Most - 1>(n, f);
  }
}

/// multiply_tile for 1 to 6 rows and 1 to kTileVectors vectors of columns.
template <Operand operand, Into into>
[[gnu::noinline]] inline void multiply(std::int64_t rows, std::int64_t vectors, const float* a,
                                       std::int64_t lda, const float* b, std::int64_t ldb,
                                       std::int64_t depth, float* c, std::int64_t ldc) {
  with_constant<kTileVectors>(vectors, [&](auto v) {
    with_constant<kTileRows>(
        rows, [&](auto r) { multiply_tile<r, v, operand, into>(a, lda, b, ldb, depth, c, ldc); });
  });
}

}  // namespace longhaul::runtime::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_RUNTIME_TILE_CPU_H
