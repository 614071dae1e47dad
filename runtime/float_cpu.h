// float32 and bfloat16 memory as vectors of float32, for kernels of the CPU. Compiled for each
// target: runtime/simd_cpu.h.

#if defined(LONGHAUL_RUNTIME_FLOAT_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_RUNTIME_FLOAT_CPU_H
#undef LONGHAUL_RUNTIME_FLOAT_CPU_H
#else
#define LONGHAUL_RUNTIME_FLOAT_CPU_H
#endif

#include <cstdint>

#include "runtime/dtype.h"
#include "runtime/simd_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::runtime::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class Tag>
HWY_INLINE hn::Vec<Tag> load(Tag tag, const float* from) {
  return hn::LoadU(tag, from);
}
template <class Tag>
HWY_INLINE hn::Vec<Tag> load(Tag tag, const BFloat16* from) {
  const hn::Rebind<std::uint16_t, Tag> bits;
  const hn::RebindToUnsigned<Tag> wide;
  return hn::BitCast(
      tag, hn::ShiftLeft<16>(
               hn::PromoteTo(wide, hn::LoadU(bits, reinterpret_cast<const std::uint16_t*>(from)))));
}

template <class Tag>
HWY_INLINE void store(hn::Vec<Tag> x, Tag tag, float* to) {
  hn::StoreU(x, tag, to);
}
/// The bits of BFloat16(x): rounded to nearest even; NaN stays NaN.
template <class Tag>
HWY_INLINE void store(hn::Vec<Tag> x, Tag, BFloat16* to) {
  const hn::Rebind<std::uint16_t, Tag> bits;
  const hn::RebindToUnsigned<Tag> wide;
  const auto raw = hn::BitCast(wide, x), high = hn::ShiftRight<16>(raw);
  const auto odd = hn::And(high, hn::Set(wide, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(raw, hn::Add(odd, hn::Set(wide, 0x7fff))));
  const auto nan = hn::RebindMask(wide, hn::IsNaN(x));
  const auto kept = hn::IfThenElse(nan, hn::Or(high, hn::Set(wide, 0x40)), rounded);
  hn::StoreU(hn::TruncateTo(bits, kept), bits, reinterpret_cast<std::uint16_t*>(to));
}

}  // namespace longhaul::runtime::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_RUNTIME_FLOAT_CPU_H
