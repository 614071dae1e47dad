#pragma once
// From the scores of one tile to weights and back, row by row: softcap, softmax, sigmoid. Masked
// scores are -inf and give exact zeros; what lay in the masked keys and values never shows.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "attention/lse.h"
#include "attention/tiles.h"

namespace longhaul::attention::avx2 {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// exp(x) = power (1 + rest r), where power is a power of two and |r| <= ln(2) / 2.
struct ExpParts {
  __m256 power, r, rest;
};
inline ExpParts exp_parts(__m256 x) {
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
  const __m256i exponent = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23),
                                            _mm256_set1_epi32(127 << 23));
  return {_mm256_castsi256_ps(exponent), r, p};
}

constexpr float kExpUnderflow = -87.0f;

/// exp to about 1e-7 relative for x <= 88; below -87 (subnormal results) exactly 0; NaN stays NaN.
inline __m256 exp8(__m256 x) {
  const ExpParts e = exp_parts(x);
  const __m256 kept = _mm256_cmp_ps(x, _mm256_set1_ps(kExpUnderflow), _CMP_NLE_UQ);
  const __m256 p = _mm256_fmadd_ps(e.rest, e.r, _mm256_set1_ps(1.0f));
  return _mm256_and_ps(_mm256_mul_ps(p, e.power), kept);
}

/// A function and its derivative. Both within a few ulp, save derivatives below 1e-37, which are 0.
struct WithSlope {
  __m256 value, slope;
};

/// tanh. With e = exp(-2 |x|): (1 - e) / (1 + e) and 4 e / (1 + e)^2, 1 - e without cancellation.
/// NaN stays NaN.
inline WithSlope tanh8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  const __m256 limit = _mm256_set1_ps(kExpUnderflow);
  const __m256 y = _mm256_mul_ps(_mm256_set1_ps(-2.0f), _mm256_andnot_ps(sign, x));
  const ExpParts parts = exp_parts(_mm256_max_ps(limit, y));  // the order of operands keeps NaN
  const __m256 rest = _mm256_mul_ps(parts.rest, parts.r);
  const __m256 e = _mm256_fmadd_ps(parts.power, rest, parts.power);
  const __m256 less = _mm256_fnmadd_ps(parts.power, rest, _mm256_sub_ps(one, parts.power));
  const __m256 by = _mm256_div_ps(one, _mm256_add_ps(one, e));
  const __m256 kept = _mm256_cmp_ps(y, limit, _CMP_NLE_UQ);
  const __m256 slope = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(4.0f), e), _mm256_mul_ps(by, by));
  return {_mm256_or_ps(_mm256_mul_ps(less, by), _mm256_and_ps(x, sign)),
          _mm256_and_ps(slope, kept)};
}

/// 1 / (1 + exp(-x)). With t = exp(-|x|): 1 / (1 + t) or t / (1 + t), and t / (1 + t)^2, so neither
/// end cancels. Exactly 0 at -inf; NaN stays NaN.
inline WithSlope sigmoid8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 t = exp8(_mm256_or_ps(x, _mm256_set1_ps(-0.0f)));
  const __m256 high = _mm256_div_ps(one, _mm256_add_ps(one, t)), low = _mm256_mul_ps(t, high);
  return {_mm256_blendv_ps(high, low, x), _mm256_mul_ps(low, high)};  // blend by the sign of x
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

// The rows below that only some calls need are not inlined: the code around the common softmax
// stays as small as without them. A call is little beside the up to 384 columns of a row.

/// Scores <- cap tanh(score / cap). Before masking: a cap makes -inf finite.
[[gnu::noinline]] inline void softcap_row(float* scores, Columns columns, float cap) {
  const __m256 size = _mm256_set1_ps(cap), inverse = _mm256_set1_ps(1 / cap);
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(scores + c), inverse);
    _mm256_storeu_ps(scores + c, _mm256_mul_ps(size, tanh8(x).value));
  }
}

/// Also ds: dout v -> (dout v - delta) (1 - tanh^2). What follows takes delta as 0.
[[gnu::noinline]] inline void softcap_row_backward(float* scores, float* ds, Columns columns,
                                                   float cap, float delta) {
  const __m256 size = _mm256_set1_ps(cap), inverse = _mm256_set1_ps(1 / cap);
  const __m256 row_delta = _mm256_set1_ps(delta);
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    const WithSlope capped = tanh8(_mm256_mul_ps(_mm256_loadu_ps(scores + c), inverse));
    _mm256_storeu_ps(scores + c, _mm256_mul_ps(size, capped.value));
    const __m256 gradient = _mm256_sub_ps(_mm256_loadu_ps(ds + c), row_delta);
    _mm256_storeu_ps(ds + c, _mm256_mul_ps(gradient, capped.slope));
  }
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
inline void softmax_backward(float* p, float* ds, Columns columns, Lse lse, float delta) {
  const __m256 high = _mm256_set1_ps(lse.high), low = _mm256_set1_ps(lse.low);
  const __m256 row_delta = _mm256_set1_ps(delta);
  const __m256 masked = _mm256_set1_ps(kMinusInfinity);
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    const __m256 score = _mm256_loadu_ps(p + c);
    const __m256 visible = _mm256_cmp_ps(score, masked, _CMP_NEQ_UQ);
    const __m256 x = _mm256_sub_ps(_mm256_sub_ps(score, high), low);
    const __m256 probability = _mm256_and_ps(exp8(x), visible);
    const __m256 gradient =
        _mm256_mul_ps(probability, _mm256_sub_ps(_mm256_loadu_ps(ds + c), row_delta));
    _mm256_storeu_ps(p + c, probability);
    _mm256_storeu_ps(ds + c, _mm256_and_ps(gradient, visible));
  }
}

/// Scores <- sigmoid(score + bias).
[[gnu::noinline]] inline void sigmoid_row(float* scores, Columns columns, float bias) {
  const __m256 shift = _mm256_set1_ps(bias);
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    const __m256 x = _mm256_add_ps(_mm256_loadu_ps(scores + c), shift);
    _mm256_storeu_ps(scores + c, sigmoid8(x).value);
  }
}

/// p: scores -> P = sigmoid(score + bias); ds: dout v -> dS = P (1 - P) dout v. Both exactly 0
/// where masked.
[[gnu::noinline]] inline void sigmoid_backward(float* p, float* ds, Columns columns, float bias) {
  const __m256 shift = _mm256_set1_ps(bias), masked = _mm256_set1_ps(kMinusInfinity);
  for (std::int64_t c = columns.begin; c < columns.end; c += 8) {
    const __m256 score = _mm256_loadu_ps(p + c);
    const __m256 visible = _mm256_cmp_ps(score, masked, _CMP_NEQ_UQ);
    const WithSlope weight = sigmoid8(_mm256_add_ps(score, shift));
    const __m256 gradient = _mm256_mul_ps(weight.slope, _mm256_loadu_ps(ds + c));
    _mm256_storeu_ps(p + c, weight.value);
    _mm256_storeu_ps(ds + c, _mm256_and_ps(gradient, visible));
  }
}

}  // namespace longhaul::attention::avx2
