#pragma once
// From products of queries and keys, as tiles leave them in float32, to weights in bfloat16, as
// tiles take them. Weights are rounded to 8 bits, so a cubic is enough of an exponential.

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "attention/pack_amx_cpu.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16")

namespace longhaul::attention::amx {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kLog2OfE = 1.4426950408889634;

/// 2^z where `seen`, else 0. Within 1.03e-4 of it; exact at whole numbers, so that a lone key
/// weighs 1, and without a step there. 0 at -infinity; NaN stays NaN.
inline __m512 exp2_16(__mmask16 seen, __m512 z) {
  // Least largest relative error on [0, 1] of the cubics that are 1 and 2 at its ends.
  const __m512 f = _mm512_reduce_ps(z, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // z - floor(z)
  __m512 p = _mm512_set1_ps(0.07826797f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.22630768f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6954243f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(seen, p, z);  // p 2^floor(z)
}

/// To bfloat16, to the nearest, ties to even; subnormals become zeros. `low` comes first.
inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/// From a product to a power of two.
struct Exponent {
  float scale = 1;     // of the scores
  float per_unit = 0;  // scale log2(e)
  /// How far products may rise above a row's reference until it is set anew: weights grow to 2^8.
  float margin = 0;
  explicit Exponent(float scale_of_scores)
      : scale(scale_of_scores),
        per_unit(static_cast<float>(static_cast<double>(scale_of_scores) * kLog2OfE)),
        margin(std::min(8 / per_unit, std::numeric_limits<float>::max())) {}
};

/// The running softmax of a row: weights are exp(scale (product - reference)), and what was summed
/// is the sum of 16 lanes. Nothing seen but -infinity: the reference is -infinity.
struct RowState {
  alignas(64) float sums[16];
  float reference;
};

/// weights[16 vectors] <- those of a row's products, 0 where `seen` has no bit; updates the state.
/// Returns the factor for what was summed before. An even number of vectors.
template <bool masked>
inline float weigh_row(const float* products, std::int64_t vectors, const __mmask16* seen,
                       const Exponent& exponent, RowState& state, Bits* weights) {
  constexpr __mmask16 kAll = 0xffff;
  const __m512 nothing = _mm512_set1_ps(kMinusInfinity);
  __m512 largest = nothing;
  for (std::int64_t i = 0; i < vectors; ++i) {
    __m512 x = _mm512_load_ps(products + 16 * i);
    if (masked) x = _mm512_mask_mov_ps(nothing, seen[i], x);
    largest = _mm512_max_ps(x, largest);  // of a NaN and `largest` this order takes `largest`
  }
  float factor = 1;
  if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(state.reference + exponent.margin), _CMP_GT_OQ) !=
      0) {
    const float reference = _mm512_reduce_max_ps(largest);
    factor = state.reference == kMinusInfinity
                 ? 0
                 : std::exp2((state.reference - reference) * exponent.per_unit);
    state.reference = reference;
    _mm512_store_ps(state.sums, _mm512_mul_ps(_mm512_load_ps(state.sums), _mm512_set1_ps(factor)));
  }
  const __m512 reference = _mm512_set1_ps(state.reference == kMinusInfinity ? 0 : state.reference);
  const __m512 per_unit = _mm512_set1_ps(exponent.per_unit);
  __m512 sums = _mm512_load_ps(state.sums);
  for (std::int64_t i = 0; i < vectors; i += 2) {
    const __m512 a = _mm512_sub_ps(_mm512_load_ps(products + 16 * i), reference),
                 b = _mm512_sub_ps(_mm512_load_ps(products + 16 * i + 16), reference);
    const __m512 low = exp2_16(masked ? seen[i] : kAll, _mm512_mul_ps(a, per_unit)),
                 high = exp2_16(masked ? seen[i + 1] : kAll, _mm512_mul_ps(b, per_unit));
    sums = _mm512_add_ps(sums, _mm512_add_ps(low, high));
    _mm512_store_si512(weights + 16 * i, rounded(low, high));
  }
  _mm512_store_ps(state.sums, sums);
  return factor;
}

/// What 16 rows are to one key: their products with it and its value's with dout, and what was
/// known of the rows.
struct RowsOfKey {
  __mmask16 seen;
  __m512 product, dp;
  __m512 lse_high, lse_low, delta;
};
/// P = exp(scale product - lse) and dS = P (dp - delta), both 0 where not seen.
struct Gradients {
  __m512 p, ds;
};
inline Gradients gradients(const RowsOfKey& rows, __m512 scale) {
  const __m512 x = _mm512_sub_ps(_mm512_fmsub_ps(rows.product, scale, rows.lse_high), rows.lse_low);
  const __m512 p =
      exp2_16(rows.seen, _mm512_mul_ps(x, _mm512_set1_ps(static_cast<float>(kLog2OfE))));
  // A score that is the LSE has all the weight, and no gradient, however delta was summed.
  const __m512 shares =
      _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ), p);
  return {p, _mm512_maskz_mul_ps(rows.seen, shares, _mm512_sub_ps(rows.dp, rows.delta))};
}

}  // namespace longhaul::attention::amx

#pragma GCC pop_options
