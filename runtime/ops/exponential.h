#pragma once
// Private to kernels: an exponential that compilers vectorise, with -fno-trapping-math.

#include <bit>
#include <cstdint>

namespace longhaul::runtime::ops::detail {

/// e^x in fp32 to about 2 ulp, x clamped to [-87, 88]: nothing overflows and NaN stays NaN. The
/// same bits in scalar and vector code. Range reduction by the magic-number rounding of x / ln 2,
/// then a polynomial of degree 7 on [-ln2/2, ln2/2] (Taylor; its remainder there is below 1e-8).
inline float exponential(float x) {
  constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * kLog2E + kMagic;
  const float n = shifted - kMagic;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::int32_t k = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kMagic);
  return p * std::bit_cast<float>((k + 127) << 23);
}

/// tanh(x) to about 4 ulp; the same bits in scalar and vector code, and NaN stays NaN. With m =
/// e^-2|x|
/// - 1, taken without cancellation, it is -m / (2 + m), with x's sign.
inline float hyperbolic_tangent(float x) {
  constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kMagic = 12582912.0f;
  const std::uint32_t sign = std::bit_cast<std::uint32_t>(x) & 0x80000000u;
  float y = -2.0f * std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) ^ sign);
  y = y < -40.0f ? -40.0f : y;  // tanh is 1 there
  const float shifted = y * kLog2E + kMagic;
  const float n = shifted - kMagic;
  const float r = (y - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040.0f;  // (e^r - 1) / r, as in exponential()
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  const std::int32_t k = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kMagic);
  const float power = std::bit_cast<float>((k + 127) << 23);
  const float m = power * (p * r) + (power - 1.0f);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>((0.0f - m) / (2.0f + m)) | sign);
}

/// log(1 + t), 0 <= t <= 1, to about 2 ulp: 2 atanh(z), z = t / (2 + t) <= 1/3, as its series (the
/// next term is below 1e-9 of the sum). NaN stays NaN.
inline float log_of_one_plus(float t) {
  const float z = t / (2.0f + t), square = z * z;
  float p = 1.0f / 17.0f;
  p = p * square + 1.0f / 15.0f;
  p = p * square + 1.0f / 13.0f;
  p = p * square + 1.0f / 11.0f;
  p = p * square + 1.0f / 9.0f;
  p = p * square + 1.0f / 7.0f;
  p = p * square + 1.0f / 5.0f;
  p = p * square + 1.0f / 3.0f;
  return 2.0f * (z + z * square * p);
}

}  // namespace longhaul::runtime::ops::detail
