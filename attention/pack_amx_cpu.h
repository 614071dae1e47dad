#pragma once
// Copies bfloat16 rows of one head out of strided views into what tiles are loaded from: operands
// in whole tiles, padded with zeros. B's rows lie in pairs, [depth / 2][16][2] of 16 columns, and
// its tiles behind each other in memory.
//
// A weight of 0 hides a row from a sum, unless what it multiplies is an infinity or NaN. So where
// rows are what is summed, packing puts zeros for those and says so, and the kernels add what is
// missing to the sums that do see it.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "attention/amx_tile_cpu.h"
#include "attention/head_rows_cpu.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd")

namespace longhaul::attention::amx {

using Bits = std::uint16_t;  ///< of a bfloat16

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }
/// The nearest whole number of two tiles: sums are made of two by two.
constexpr std::int64_t whole(std::int64_t n) { return round_up(n, 32); }

/// A row of bfloat16.
inline const Bits* row_of(const HeadRows& rows, std::int64_t row) {
  return reinterpret_cast<const Bits*>(rows.data) + row * rows.stride;
}

constexpr Bits kExponent = 0x7f80;
inline bool is_finite(Bits x) { return (x & kExponent) != kExponent; }
inline float widened(Bits x) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(x << 16))); }

/// Elements [d, d + 32) of a row, zeros past its end and past the last row.
inline __m512i load32(const HeadRows& rows, std::int64_t row, std::int64_t d) {
  const std::int64_t left = row < rows.count ? rows.dim - d : 0;
  if (left <= 0) return _mm512_setzero_si512();
  const __mmask32 there = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
  return _mm512_maskz_loadu_epi16(there, row_of(rows, row) + d);
}

/// Replaces infinities and NaN by zeros, and remembers whether there were any.
class FiniteOnly {
 public:
  __m512i operator()(__m512i x) {
    const __m512i exponent = _mm512_set1_epi16(static_cast<short>(kExponent));
    const __mmask32 finite = _mm512_cmpneq_epi16_mask(_mm512_and_si512(x, exponent), exponent);
    all_ &= finite;
    return _mm512_maskz_mov_epi16(finite, x);
  }
  bool all() const { return all_ == ~__mmask32{0}; }

 private:
  __mmask32 all_ = ~__mmask32{0};
};

/// A[padded_rows, depth]: to[row * depth + d].
inline void pack_rows(const HeadRows& rows, std::int64_t padded_rows, std::int64_t depth,
                      Bits* to) {
  for (std::int64_t row = 0; row < padded_rows; ++row) {
    for (std::int64_t d = 0; d < depth; d += 32)
      _mm512_store_si512(to + row * depth + d, load32(rows, row, d));
  }
}

/// 16 x 16 of 32 bits.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // u[4 g + i] has rows 4 g to 4 g + 3 of columns i, i + 4, ...
    const __m512i a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88),
                  b = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd),
                  c = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88),
                  d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
    r[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

/// 16 rows from `row`, elements [d, d + 32), as 16 rows of B.
inline void load_transposed(const HeadRows& rows, std::int64_t row, std::int64_t d,
                            __m512i (&block)[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) block[i] = load32(rows, row + i, d);
  transpose16(block);
}

/// B[depth, padded_rows]: the view's rows are its columns. [padded_rows / 16][depth / 2][16][2].
inline void pack_transposed(const HeadRows& rows, std::int64_t padded_rows, std::int64_t depth,
                            Bits* to) {
  for (std::int64_t row = 0; row < padded_rows; row += kTileColumns) {
    for (std::int64_t d = 0; d < depth; d += kTileDepth, to += kTileValues) {
      __m512i block[16];
      load_transposed(rows, row, d, block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * 32, block[i]);
    }
  }
}

/// Two rows as the pairs of their elements: 16 columns, and the 16 behind them.
struct Pairs {
  __m512i low, high;
};
inline Pairs interleaved(__m512i first, __m512i second) {
  const __m512i index = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i above = _mm512_add_epi16(index, _mm512_set1_epi16(16));
  return {_mm512_permutex2var_epi16(first, index, second),
          _mm512_permutex2var_epi16(first, above, second)};
}

/// B[padded_rows, width]: what is summed are the view's rows. [width / 16][padded_rows / 2][16][2].
/// Returns whether all is finite; what is not is 0.
inline bool pack_pairs(const HeadRows& rows, std::int64_t padded_rows, std::int64_t width,
                       Bits* to) {
  FiniteOnly finite;
  for (std::int64_t d = 0; d < width; d += 32) {
    Bits* const low = to + d * padded_rows;
    Bits* const high = low + kTileColumns * padded_rows;
    for (std::int64_t row = 0; row < padded_rows; row += 2) {
      const Pairs pairs =
          interleaved(finite(load32(rows, row, d)), finite(load32(rows, row + 1, d)));
      _mm512_store_si512(low + row * kTileColumns, pairs.low);
      _mm512_store_si512(high + row * kTileColumns, pairs.high);
    }
  }
  return finite.all();
}

/// A[width, padded_rows]: to[d * padded_rows + row]. Returns whether all is finite; what is not
/// is 0.
inline bool pack_columns(const HeadRows& rows, std::int64_t padded_rows, std::int64_t width,
                         Bits* to) {
  FiniteOnly finite;
  const __m512i even =
      _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                       24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
  for (std::int64_t row = 0; row < padded_rows; row += 32) {
    for (std::int64_t d = 0; d < width; d += 32) {
      __m512i low[16], high[16];
      load_transposed(rows, row, d, low);
      load_transposed(rows, row + 16, d, high);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const __m512i a = finite(low[i]), b = finite(high[i]);
        Bits* const at = to + (d + 2 * i) * padded_rows + row;
        _mm512_store_si512(at, _mm512_permutex2var_epi16(a, even, b));
        _mm512_store_si512(at + padded_rows, _mm512_permutex2var_epi16(a, odd, b));
      }
    }
  }
  return finite.all();
}

}  // namespace longhaul::attention::amx

#pragma GCC pop_options
