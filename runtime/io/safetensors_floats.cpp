// Bits of F32, BF16 and F16 against float32. Loops over F16 have no branches in their bodies, for
// the compiler to make vectors of them.

#include <algorithm>
#include <bit>
#include <cstring>

#include "runtime/error.h"
#include "runtime/io/safetensors.h"

namespace longhaul::runtime::safetensors {
namespace {

constexpr std::uint32_t kSign = 0x80000000u, kInfinity = 0x7f800000u;

/// Without a branch, whatever the optimiser thinks.
std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

/// F16 has 5 bits of exponent, biased by 15, and 10 of mantissa; float32 8, biased by 127, and 23.
float float_of_f16(std::uint16_t half) {
  const std::uint32_t magnitude = std::uint32_t{half & 0x7fffu} << 13;
  const std::uint32_t normal = magnitude + ((127u - 15u) << 23);
  const std::uint32_t special = magnitude | kInfinity;  // infinity and NaN
  const auto subnormal = std::bit_cast<std::uint32_t>(static_cast<float>(half & 0x7fff) * 0x1p-24f);
  std::uint32_t bits = select(magnitude < (1u << 23), subnormal, normal);
  bits = select(magnitude >= (31u << 23), special, bits);
  return std::bit_cast<float>(bits | (std::uint32_t{half & 0x8000u} << 16));
}

/// Rounded to nearest even; what becomes infinite has been refused.
std::uint16_t f16_of_float(float value) {
  const auto raw = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = raw & ~kSign;
  const std::uint32_t normal =
      (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - ((127u - 15u) << 23)) >> 13;
  // F16's subnormal numbers are multiples of 2^-24, as are the float32 numbers from a half to one.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(std::min(magnitude, 0x38800000u)) + 0.5f) -
      std::bit_cast<std::uint32_t>(0.5f);
  const std::uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  std::uint32_t half = select(magnitude < 0x38800000u, subnormal, normal);  // 2^-14
  half = select(magnitude >= kInfinity, 0x7c00u, half);
  half = select(magnitude > kInfinity, nan, half);
  return static_cast<std::uint16_t>(half | ((raw & kSign) >> 16));
}

/// The bits of the least magnitude that rounds to infinity.
std::uint32_t least_overflow(Element element) {
  switch (element) {
    case Element::f16:
      return 0x477ff000u;  // 65520
    case Element::bf16:
      return 0x7f7f8000u;
    default:
      return kInfinity;
  }
}

bool overflows(float value, std::uint32_t least) {
  const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(value) & ~kSign;
  return magnitude - least < kInfinity - least;
}

void check(Element element, std::size_t bytes, std::size_t values) {
  LONGHAUL_CHECK(element == Element::f32 || element == Element::bf16 || element == Element::f16,
                 name(element), " is not converted; expected F32, BF16 or F16");
  LONGHAUL_CHECK(bytes == values * static_cast<std::size_t>(size_bytes(element)), bytes,
                 " bytes of ", name(element), " for ", values, " values");
}

/// Bytes of files may lie anywhere in memory.
std::uint16_t load16(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}
void store16(std::uint16_t bits, std::byte* to) { std::memcpy(to, &bits, sizeof bits); }

}  // namespace

void to_floats(Element element, std::span<const std::byte> bytes, std::span<float> out) {
  check(element, bytes.size(), out.size());
  const std::byte* from = bytes.data();
  if (element == Element::f32) {
    if (!out.empty()) std::memcpy(out.data(), from, bytes.size());
  } else if (element == Element::bf16) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = std::bit_cast<float>(std::uint32_t{load16(from + 2 * i)} << 16);
    }
  } else {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = float_of_f16(load16(from + 2 * i));
  }
}

std::optional<std::int64_t> from_floats(Element element, std::span<const float> values,
                                        std::span<std::byte> bytes) {
  check(element, bytes.size(), values.size());
  const std::uint32_t least = least_overflow(element);
  std::uint32_t overflowed = 0;
  for (const float value : values) overflowed |= std::uint32_t{overflows(value, least)};
  std::byte* to = bytes.data();
  if (element == Element::f32) {
    if (!values.empty()) std::memcpy(to, values.data(), bytes.size());
  } else if (element == Element::bf16) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      store16(BFloat16(values[i]).bits, to + 2 * i);
    }
  } else {
    for (std::size_t i = 0; i < values.size(); ++i) store16(f16_of_float(values[i]), to + 2 * i);
  }
  if (overflowed == 0) return std::nullopt;
  return std::ranges::find_if(values, [&](float value) { return overflows(value, least); }) -
         values.begin();
}

}  // namespace longhaul::runtime::safetensors
