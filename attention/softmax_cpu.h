#pragma once
// Row-wise softmax of one tile, forward and backward. Masked scores are -inf and give exact zeros;
// what lay in the masked keys and values never shows.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "attention/tiles.h"

namespace longhaul::attention::avx2 {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// exp to about 1e-7 relative for x <= 88; below -87 (subnormal results) exactly 0; NaN stays NaN.
inline __m256 exp8(__m256 x) {
  const __m256 magic = _mm256_set1_ps(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504f), magic);
  const __m256 n = _mm256_sub_ps(shifted, magic);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  // Chebyshev interpolation of (exp(r) - 1) / r on +-ln(2)/2.
  __m256 p = _mm256_set1_ps(0.0013933731f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.0083692204f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.0416664630f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.1666650474f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23),
                                            _mm256_set1_epi32(127 << 23));
  const __m256 kept = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_NLE_UQ);
  return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(exponent)), kept);
}

inline float sum8(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float max8(__m256 x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/// Columns of a tile in whole vectors around a hull of keys.
struct Columns {
  std::int64_t begin = 0, end = 0;
};
inline Columns columns_of(Span hull) { return {hull.begin / 8 * 8, (hull.end + 7) / 8 * 8}; }

/// Scores of `columns` outside the spans <- -inf.
inline void mask_row(float* scores, std::span<const Span> spans, Columns columns) {
  std::int64_t at = columns.begin;
  for (const Span& span : spans) {
    std::fill(scores + at, scores + std::max<std::int64_t>(at, span.begin), kMinusInfinity);
    at = std::max<std::int64_t>(at, span.end);
  }
  std::fill(scores + at, scores + std::max(at, columns.end), kMinusInfinity);
}

/// The running softmax of one row.
struct RowState {
  float max = kMinusInfinity, sum = 0;
};

/// Scores <- exp(score - new maximum); updates the state. Returns the factor for what was summed
/// before.
inline float online_softmax(float* scores, Columns columns, RowState& state) {
  __m256 largest = _mm256_set1_ps(kMinusInfinity);
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    largest = _mm256_max_ps(_mm256_loadu_ps(scores + c), largest);
  }
  float max = std::max(state.max, max8(largest));
  if (max == kMinusInfinity) {
    // Nothing visible so far, or only NaN, which vector maxima drop and which must not look like
    // nothing.
    const bool nan =
        std::any_of(scores + columns.begin, scores + columns.end, [](float x) { return x != x; });
    max = nan ? std::numeric_limits<float>::quiet_NaN() : 0;
    if (!nan) {
      std::fill(scores + columns.begin, scores + columns.end, 0.0f);
      return 1;
    }
  }
  const __m256 shift = _mm256_set1_ps(max);
  __m256 sum = _mm256_setzero_ps();
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    const __m256 p = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + c), shift));
    sum = _mm256_add_ps(sum, p);
    _mm256_storeu_ps(scores + c, p);
  }
  const float factor = state.max == max ? 1 : std::exp(state.max - max);
  state.sum = state.sum * factor + sum8(sum);
  state.max = max;
  return factor;
}

/// p: scores -> P = exp(score - lse); ds: dout v -> dS = P (dout v - delta). Both exactly 0 where
/// masked.
inline void softmax_backward(float* p, float* ds, Columns columns, float lse, float delta) {
  const __m256 shift = _mm256_set1_ps(lse), row_delta = _mm256_set1_ps(delta);
  const __m256 masked = _mm256_set1_ps(kMinusInfinity);
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    const __m256 score = _mm256_loadu_ps(p + c);
    const __m256 visible = _mm256_cmp_ps(score, masked, _CMP_NEQ_UQ);
    const __m256 probability = _mm256_and_ps(exp8(_mm256_sub_ps(score, shift)), visible);
    const __m256 gradient =
        _mm256_mul_ps(probability, _mm256_sub_ps(_mm256_loadu_ps(ds + c), row_delta));
    _mm256_storeu_ps(p + c, probability);
    _mm256_storeu_ps(ds + c, _mm256_and_ps(gradient, visible));
  }
}

}  // namespace longhaul::attention::avx2
