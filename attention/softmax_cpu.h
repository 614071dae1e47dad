// From the scores of one tile to weights and back, row by row: softcap, softmax, sigmoid. Masked
// scores are -inf and give exact zeros; what lay in the masked keys and values never shows.
// Compiled for each target: runtime/simd_cpu.h.

#if defined(LONGHAUL_ATTENTION_SOFTMAX_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_SOFTMAX_CPU_H
#undef LONGHAUL_ATTENTION_SOFTMAX_CPU_H
#else
#define LONGHAUL_ATTENTION_SOFTMAX_CPU_H
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "attention/lse.h"
#include "attention/tile_cpu.h"
#include "attention/tiles.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// exp(x) = power (1 + rest r), where power is a power of two and |r| <= ln(2) / 2.
struct ExpParts {
  Vector power, r, rest;
};
HWY_INLINE ExpParts exp_parts(Vector x) {
  constexpr hn::RebindToSigned<decltype(kFloats)> kInts;
  const Vector magic = hn::Set(kFloats, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vector shifted = hn::MulAdd(x, hn::Set(kFloats, 1.44269504f), magic);
  const Vector n = hn::Sub(shifted, magic);
  Vector r = hn::NegMulAdd(n, hn::Set(kFloats, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(kFloats, -2.12194440e-4f), r);
  // Chebyshev interpolation of (exp(r) - 1) / r on +-ln(2)/2.
  Vector p = hn::Set(kFloats, 0.0013933731f);
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.0083692204f));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.0416664630f));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.1666650474f));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 1.0f));
  const auto exponent =
      hn::Add(hn::ShiftLeft<23>(hn::BitCast(kInts, shifted)), hn::Set(kInts, 127 << 23));
  return {hn::BitCast(kFloats, exponent), r, p};
}

constexpr float kExpUnderflow = -87.0f;

/// exp to about 1e-7 relative for x <= 88; below -87 (subnormal results) exactly 0; NaN stays NaN.
HWY_INLINE Vector exponential(Vector x) {
  const ExpParts e = exp_parts(x);
  const Vector p = hn::MulAdd(e.rest, e.r, hn::Set(kFloats, 1.0f));
  return hn::IfThenZeroElse(hn::Le(x, hn::Set(kFloats, kExpUnderflow)), hn::Mul(p, e.power));
}

/// A function and its derivative. Both within a few ulp, save derivatives below 1e-37, which are 0.
struct WithSlope {
  Vector value, slope;
};

/// tanh. With e = exp(-2 |x|): (1 - e) / (1 + e) and 4 e / (1 + e)^2, 1 - e without cancellation.
/// NaN stays NaN.
HWY_INLINE WithSlope hyperbolic_tangent(Vector x) {
  const Vector one = hn::Set(kFloats, 1.0f), limit = hn::Set(kFloats, kExpUnderflow);
  const Vector y = hn::Mul(hn::Set(kFloats, -2.0f), hn::Abs(x));
  const ExpParts parts = exp_parts(hn::Max(limit, y));  // the order of operands keeps NaN
  const Vector rest = hn::Mul(parts.rest, parts.r);
  const Vector e = hn::MulAdd(parts.power, rest, parts.power);
  const Vector less = hn::NegMulAdd(parts.power, rest, hn::Sub(one, parts.power));
  const Vector by = hn::Div(one, hn::Add(one, e));
  const Vector slope = hn::Mul(hn::Mul(hn::Set(kFloats, 4.0f), e), hn::Mul(by, by));
  return {hn::CopySignToAbs(hn::Mul(less, by), x), hn::IfThenZeroElse(hn::Le(y, limit), slope)};
}

/// 1 / (1 + exp(-x)). With t = exp(-|x|): 1 / (1 + t) or t / (1 + t), and t / (1 + t)^2, so neither
/// end cancels. Exactly 0 at -inf; NaN stays NaN.
HWY_INLINE WithSlope sigmoid(Vector x) {
  const Vector one = hn::Set(kFloats, 1.0f);
  const Vector t = exponential(hn::Neg(hn::Abs(x)));
  const Vector high = hn::Div(one, hn::Add(one, t)), low = hn::Mul(t, high);
  return {hn::IfThenElse(hn::Lt(x, hn::Zero(kFloats)), low, high), hn::Mul(low, high)};
}

/// Columns of a tile in whole vectors around a hull of keys.
struct Columns {
  std::int64_t begin = 0, end = 0;
};
inline Columns columns_of(Span hull) {
  return {hull.begin / kLanes * kLanes, padded_to_vectors(hull.end)};
}

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
  const Vector size = hn::Set(kFloats, cap), inverse = hn::Set(kFloats, 1 / cap);
  for (std::int64_t c = columns.begin; c < columns.end; c += kLanes) {
    const Vector x = hn::Mul(hn::LoadU(kFloats, scores + c), inverse);
    hn::StoreU(hn::Mul(size, hyperbolic_tangent(x).value), kFloats, scores + c);
  }
}

/// Also ds: dout v -> (dout v - delta) (1 - tanh^2). What follows takes delta as 0.
[[gnu::noinline]] inline void softcap_row_backward(float* scores, float* ds, Columns columns,
                                                   float cap, float delta) {
  const Vector size = hn::Set(kFloats, cap), inverse = hn::Set(kFloats, 1 / cap);
  const Vector row_delta = hn::Set(kFloats, delta);
  for (std::int64_t c = columns.begin; c < columns.end; c += kLanes) {
    const WithSlope capped = hyperbolic_tangent(hn::Mul(hn::LoadU(kFloats, scores + c), inverse));
    hn::StoreU(hn::Mul(size, capped.value), kFloats, scores + c);
    const Vector gradient = hn::Sub(hn::LoadU(kFloats, ds + c), row_delta);
    hn::StoreU(hn::Mul(gradient, capped.slope), kFloats, ds + c);
  }
}

/// The running softmax of one row.
struct RowState {
  float max = kMinusInfinity, sum = 0;
};

/// Scores <- exp(score - new maximum); updates the state. Returns the factor for what was summed
/// before.
inline float online_softmax(float* scores, Columns columns, RowState& state) {
  Vector largest = hn::Set(kFloats, kMinusInfinity);
  for (std::int64_t c = columns.begin; c < columns.end; c += kLanes)
    largest = hn::Max(hn::LoadU(kFloats, scores + c), largest);
  float max = std::max(state.max, hn::GetLane(hn::MaxOfLanes(kFloats, largest)));
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
  const Vector shift = hn::Set(kFloats, max);
  Vector sum = hn::Zero(kFloats);
  for (std::int64_t c = columns.begin; c < columns.end; c += kLanes) {
    const Vector p = exponential(hn::Sub(hn::LoadU(kFloats, scores + c), shift));
    sum = hn::Add(sum, p);
    hn::StoreU(p, kFloats, scores + c);
  }
  const float factor = state.max == max ? 1 : std::exp(state.max - max);
  state.sum = state.sum * factor + hn::GetLane(hn::SumOfLanes(kFloats, sum));
  state.max = max;
  return factor;
}

/// p: scores -> P = exp(score - lse); ds: dout v -> dS = P (dout v - delta). Both exactly 0 where
/// masked.
inline void softmax_backward(float* p, float* ds, Columns columns, Lse lse, float delta) {
  const Vector high = hn::Set(kFloats, lse.high), low = hn::Set(kFloats, lse.low);
  const Vector row_delta = hn::Set(kFloats, delta), masked = hn::Set(kFloats, kMinusInfinity);
  for (std::int64_t c = columns.begin; c < columns.end; c += kLanes) {
    const Vector score = hn::LoadU(kFloats, p + c);
    const auto hidden = hn::Eq(score, masked);
    const Vector x = hn::Sub(hn::Sub(score, high), low);
    const Vector probability = hn::IfThenZeroElse(hidden, exponential(x));
    const Vector gradient = hn::Mul(probability, hn::Sub(hn::LoadU(kFloats, ds + c), row_delta));
    hn::StoreU(probability, kFloats, p + c);
    hn::StoreU(hn::IfThenZeroElse(hidden, gradient), kFloats, ds + c);
  }
}

/// Scores <- sigmoid(score + bias).
[[gnu::noinline]] inline void sigmoid_row(float* scores, Columns columns, float bias) {
  const Vector shift = hn::Set(kFloats, bias);
  for (std::int64_t c = columns.begin; c < columns.end; c += kLanes) {
    const Vector x = hn::Add(hn::LoadU(kFloats, scores + c), shift);
    hn::StoreU(sigmoid(x).value, kFloats, scores + c);
  }
}

/// p: scores -> P = sigmoid(score + bias); ds: dout v -> dS = P (1 - P) dout v. Both exactly 0
/// where masked.
[[gnu::noinline]] inline void sigmoid_backward(float* p, float* ds, Columns columns, float bias) {
  const Vector shift = hn::Set(kFloats, bias), masked = hn::Set(kFloats, kMinusInfinity);
  for (std::int64_t c = columns.begin; c < columns.end; c += kLanes) {
    const Vector score = hn::LoadU(kFloats, p + c);
    const auto hidden = hn::Eq(score, masked);
    const WithSlope weight = sigmoid(hn::Add(score, shift));
    const Vector gradient = hn::Mul(weight.slope, hn::LoadU(kFloats, ds + c));
    hn::StoreU(weight.value, kFloats, p + c);
    hn::StoreU(hn::IfThenZeroElse(hidden, gradient), kFloats, ds + c);
  }
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_SOFTMAX_CPU_H
