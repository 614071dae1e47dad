// Copies rows of one head out of strided float32 or bfloat16 views into the layouts that the inner
// loops read: float32, scaled, in panels padded with zeros. Each says whether all it saw was
// finite. Compiled for each target: runtime/simd_cpu.h.

#if defined(LONGHAUL_ATTENTION_PACK_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_PACK_CPU_H
#undef LONGHAUL_ATTENTION_PACK_CPU_H
#else
#define LONGHAUL_ATTENTION_PACK_CPU_H
#endif

#include <algorithm>
#include <cstdint>

#include "attention/head_rows_cpu.h"
#include "attention/tile_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

/// Elements [d, d + lanes of `tag`) of a row as float32, zeros past its end.
template <class Tag>
HWY_INLINE hn::Vec<Tag> load_row(Tag tag, const HeadRows& rows, std::int64_t row, std::int64_t d) {
  constexpr auto kCount = static_cast<std::int64_t>(hn::MaxLanes(Tag()));
  const std::int64_t at = row * rows.stride + d,
                     left = std::clamp<std::int64_t>(rows.dim - d, 0, kCount);
  if (rows.bf16) {
    const hn::Rebind<std::uint16_t, Tag> bits;
    const hn::RebindToUnsigned<Tag> wide;
    const auto* from = reinterpret_cast<const std::uint16_t*>(rows.data) + at;
    alignas(32) std::uint16_t tail[kCount] = {};
    if (left < kCount) {
      std::copy_n(from, left, tail);
      from = tail;
    }
    return hn::BitCast(tag, hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(bits, from))));
  }
  const auto* from = reinterpret_cast<const float*>(rows.data) + at;
  alignas(64) float tail[kCount] = {};
  if (left < kCount) {
    std::copy_n(from, left, tail);
    from = tail;
  }
  return hn::LoadU(tag, from);
}

/// Remembers whether an infinity or NaN went by.
class FiniteWatch {
 public:
  FiniteWatch() : largest_(hn::Zero(kInts)) {}  // written out, so that it has the target
  HWY_INLINE void see(Vector x) {
    largest_ = hn::Max(largest_, hn::BitCast(kInts, hn::Abs(x)));  // floats in their order
  }
  HWY_INLINE bool all_finite() const {
    return hn::AllTrue(kInts, hn::Lt(largest_, hn::Set(kInts, 0x7f800000)));
  }

 private:
  static constexpr hn::RebindToSigned<decltype(kFloats)> kInts{};
  hn::Vec<hn::RebindToSigned<decltype(kFloats)>> largest_;
};

/// to[row * ld + d], d padded to whole vectors.
inline bool pack_rows(const HeadRows& rows, float scale, float* to, std::int64_t ld) {
  FiniteWatch watch;
  const Vector factor = hn::Set(kFloats, scale);
  for (std::int64_t row = 0; row < rows.count; ++row) {
    for (std::int64_t d = 0; d < rows.dim; d += kLanes) {
      const Vector x = load_row(kFloats, rows, row, d);
      watch.see(x);
      hn::StoreU(hn::Mul(x, factor), kFloats, to + row * ld + d);
    }
  }
  return watch.all_finite();
}

/// Panels over the head dim (class Panels), each of `panel_rows` rows: B of a product over rows.
inline bool pack_panels(const HeadRows& rows, float scale, float* to, std::int64_t panel_rows) {
  FiniteWatch watch;
  const Vector factor = hn::Set(kFloats, scale);
  const Panels panels(rows.dim);
  for (std::int64_t i = 0; i < panels.count(); ++i) {
    const Panel panel = panels[i];
    float* at = to + panel.column * panel_rows;
    for (std::int64_t row = 0; row < rows.count; ++row) {
      for (std::int64_t v = 0; v < panel.vectors; ++v, at += kLanes) {
        const Vector x = load_row(kFloats, rows, row, panel.column + v * kLanes);
        watch.see(x);
        hn::Store(hn::Mul(x, factor), kFloats, at);
      }
    }
  }
  return watch.all_finite();
}

/// Four elements from d on of every fourth row of `first`, `first` + 4, ..., one after another.
template <class Tag>
HWY_INLINE hn::Vec<Tag> load_fours(Tag tag, const HeadRows& rows, std::int64_t first,
                                   std::int64_t d) {
  if constexpr (hn::MaxLanes(Tag()) == 4) {
    return first < rows.count ? load_row(tag, rows, first, d) : hn::Zero(tag);
  } else {
    const hn::Half<Tag> half;
    constexpr auto kRows = static_cast<std::int64_t>(hn::MaxLanes(Tag())) / 2;
    return hn::Combine(tag, load_fours(half, rows, first + kRows, d),
                       load_fours(half, rows, first, d));
  }
}

/// Each group of four lanes is a square of its own, row i of it in r[i]: transposes them all.
HWY_INLINE void transpose_squares(Vector (&r)[4]) {
  const hn::RepartitionToWide<hn::RebindToUnsigned<decltype(kFloats)>> pairs;
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(kFloats, r[0], r[1])),
             low23 = hn::BitCast(pairs, hn::InterleaveLower(kFloats, r[2], r[3])),
             high01 = hn::BitCast(pairs, hn::InterleaveUpper(kFloats, r[0], r[1])),
             high23 = hn::BitCast(pairs, hn::InterleaveUpper(kFloats, r[2], r[3]));
  r[0] = hn::BitCast(kFloats, hn::InterleaveLower(pairs, low01, low23));
  r[1] = hn::BitCast(kFloats, hn::InterleaveUpper(pairs, low01, low23));
  r[2] = hn::BitCast(kFloats, hn::InterleaveLower(pairs, high01, high23));
  r[3] = hn::BitCast(kFloats, hn::InterleaveUpper(pairs, high01, high23));
}

/// Panels [count / kTileColumns][dim][kTileColumns]: B of a product over the head dim, whose
/// columns are the rows of the view, zeros past their end.
inline bool pack_transposed(const HeadRows& rows, float* to) {
  FiniteWatch watch;
  for (std::int64_t row = 0; row < round_up(rows.count, kTileColumns); row += kLanes) {
    float* panel = to + row / kTileColumns * kTileColumns * rows.dim + row % kTileColumns;
    for (std::int64_t d = 0; d < rows.dim; d += 4) {
      Vector r[4];
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < 4; ++i) {
        r[i] = load_fours(kFloats, rows, row + i, d);
        watch.see(r[i]);
      }
      transpose_squares(r);
      const std::int64_t left = std::min<std::int64_t>(4, rows.dim - d);
      for (std::int64_t i = 0; i < left; ++i)
        hn::Store(r[i], kFloats, panel + (d + i) * kTileColumns);
    }
  }
  return watch.all_finite();
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_PACK_CPU_H
