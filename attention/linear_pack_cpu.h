#pragma once
// Copies rows of one head out of strided float32 or bfloat16 views into the layouts that the inner
// loops read: float32, scaled, panels of 16 columns padded with zeros. Each says whether all it saw
// was finite.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "attention/linear_gemm_tile_cpu.h"
#include "runtime/tensor.h"

namespace longhaul::attention::avx2 {

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

/// Rows [begin, begin + count) of one head of a view [rows, heads, dim].
struct Rows {
  const std::byte* data = nullptr;
  bool bf16 = false;
  std::int64_t stride = 0;  // elements between rows
  std::int64_t count = 0, dim = 0;
};

inline Rows rows_of(const runtime::ConstTensorView& view, std::int64_t head, std::int64_t begin,
                    std::int64_t count) {
  const std::int64_t at = begin * view.stride(0) + head * view.stride(1);
  return {view.data() + at * runtime::size_bytes(view.dtype()),
          view.dtype() == runtime::DType::bfloat16, view.stride(0), count, view.size(2)};
}

/// Elements [d, d + 8) of a row as float32, zeros past its end.
inline __m256 load8(const Rows& rows, std::int64_t row, std::int64_t d) {
  const std::int64_t at = row * rows.stride + d, left = rows.dim - d;
  if (rows.bf16) {
    const auto* from = reinterpret_cast<const std::uint16_t*>(rows.data) + at;
    alignas(16) std::uint16_t tail[8] = {};
    if (left < 8) {
      std::copy(from, from + std::max<std::int64_t>(left, 0), tail);
      from = tail;
    }
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  const auto* from = reinterpret_cast<const float*>(rows.data) + at;
  if (left >= 8) return _mm256_loadu_ps(from);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(
      _mm256_set1_epi32(static_cast<int>(std::max<std::int64_t>(left, 0))), lanes);
  return _mm256_maskload_ps(from, mask);
}

/// Remembers whether an infinity or NaN went by.
class FiniteWatch {
 public:
  void see(__m256 x) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    const __m256i found =
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(x), exponent), exponent);
    found_ = _mm256_or_si256(found_, found);
  }
  bool all_finite() const { return _mm256_testz_si256(found_, found_) != 0; }

 private:
  __m256i found_ = _mm256_setzero_si256();
};

/// to[row * ld + d], d padded to a multiple of 8.
inline bool pack_rows(const Rows& rows, float scale, float* to, std::int64_t ld) {
  FiniteWatch watch;
  const __m256 factor = _mm256_set1_ps(scale);
  for (std::int64_t row = 0; row < rows.count; ++row) {
    for (std::int64_t d = 0; d < rows.dim; d += 8) {
      const __m256 x = load8(rows, row, d);
      watch.see(x);
      _mm256_storeu_ps(to + row * ld + d, _mm256_mul_ps(x, factor));
    }
  }
  return watch.all_finite();
}

/// Panels [dim / 16][panel_rows][16]: B of a product over rows.
inline bool pack_panels(const Rows& rows, float scale, float* to, std::int64_t panel_rows) {
  FiniteWatch watch;
  const __m256 factor = _mm256_set1_ps(scale);
  for (std::int64_t row = 0; row < rows.count; ++row) {
    for (std::int64_t d = 0; d < rows.dim; d += kTileColumns) {
      float* at = to + d * panel_rows + row * kTileColumns;
      const __m256 low = load8(rows, row, d), high = load8(rows, row, d + 8);
      watch.see(low);
      watch.see(high);
      _mm256_store_ps(at, _mm256_mul_ps(low, factor));
      _mm256_store_ps(at + 8, _mm256_mul_ps(high, factor));
    }
  }
  return watch.all_finite();
}

inline void transpose8(__m256 (&r)[8]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

/// Panels [count / 16][dim][16]: B of a product over the head dim, columns are rows of the view.
inline bool pack_transposed(const Rows& rows, float* to) {
  FiniteWatch watch;
  for (std::int64_t row = 0; row < round_up(rows.count, kTileColumns); row += 8) {
    float* panel = to + row / kTileColumns * kTileColumns * rows.dim + row % kTileColumns;
    for (std::int64_t d = 0; d < rows.dim; d += 8) {
      __m256 block[8];
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < 8; ++i) {
        block[i] = row + i < rows.count ? load8(rows, row + i, d) : _mm256_setzero_ps();
        watch.see(block[i]);
      }
      transpose8(block);
      const std::int64_t left = std::min<std::int64_t>(8, rows.dim - d);
      for (std::int64_t i = 0; i < left; ++i)
        _mm256_store_ps(panel + (d + i) * kTileColumns, block[i]);
    }
  }
  return watch.all_finite();
}

}  // namespace longhaul::attention::avx2
