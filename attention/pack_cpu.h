// Copies rows of one head out of strided float32 or bfloat16 views into the layouts that the inner
// loops read: float32, scaled, in panels padded with zeros. Each says whether all it saw was
// finite. Compiled for each target: runtime/simd_cpu.h.

#if defined(LONGHAUL_ATTENTION_PACK_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_PACK_CPU_H
#undef LONGHAUL_ATTENTION_PACK_CPU_H
#else
#define LONGHAUL_ATTENTION_PACK_CPU_H
#endif

#include <hwy/cache_control.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "attention/head_rows_cpu.h"
#include "attention/tile_cpu.h"
#include "runtime/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

/// Elements of memory as float32.
template <class Tag>
HWY_INLINE hn::Vec<Tag> load(Tag tag, const float* from) {
  return hn::LoadU(tag, from);
}
template <class Tag>
HWY_INLINE hn::Vec<Tag> load(Tag tag, const runtime::BFloat16* from) {
  const hn::Rebind<std::uint16_t, Tag> bits;
  const hn::RebindToUnsigned<Tag> wide;
  const auto x = hn::LoadU(bits, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(tag, hn::ShiftLeft<16>(hn::PromoteTo(wide, x)));
}
/// The first `count` of a vector's, then zeros.
template <class T>
HWY_INLINE Vector load_first(const T* from, std::int64_t count) {
  alignas(64) float values[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(from[i]);
  return hn::Load(kFloats, values);
}

/// Calls f with a pointer to the first row, of the rows' dtype.
template <class F>
HWY_INLINE auto with_elements(const HeadRows& rows, const F& f) {
  return rows.bf16 ? f(reinterpret_cast<const runtime::BFloat16*>(rows.data))
                   : f(reinterpret_cast<const float*>(rows.data));
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

/// to[i] <- factor from[i] for `count` elements, and zeros up to whole vectors.
template <class T>
HWY_INLINE void pack_row(const T* from, std::int64_t count, Vector factor, float* to,
                         FiniteWatch& watch) {
  const auto put = [&](std::int64_t at, Vector x) {
    watch.see(x);
    hn::StoreU(hn::Mul(x, factor), kFloats, to + at);
  };
  std::int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) put(at, load(kFloats, from + at));
  if (at < count) put(at, load_first(from + at, count - at));
}

/// to[row * ld + d], d padded to whole vectors. Rows come from memory: each is asked for well
/// before it is read, which caches do not do by themselves across strides.
inline bool pack_rows(const HeadRows& rows, float scale, float* to, std::int64_t ld) {
  constexpr std::int64_t kAhead = 16, kLine = 64;
  FiniteWatch watch;
  with_elements(rows, [&](const auto* from) {
    for (std::int64_t row = 0; row < rows.count; ++row) {
      const auto* ahead = reinterpret_cast<const std::byte*>(from + (row + kAhead) * rows.stride);
      const auto bytes = rows.dim * static_cast<std::int64_t>(sizeof(*from));
      for (std::int64_t at = 0; at < bytes; at += kLine) hwy::Prefetch(ahead + at);
      pack_row(from + row * rows.stride, rows.dim, hn::Set(kFloats, scale), to + row * ld, watch);
    }
  });
  return watch.all_finite();
}

/// Panels over the head dim (class Panels), each of `panel_rows` rows: B of a product over rows.
inline bool pack_panels(const HeadRows& rows, float scale, float* to, std::int64_t panel_rows) {
  FiniteWatch watch;
  const Panels panels(rows.dim);
  with_elements(rows, [&](const auto* from) {
    for (std::int64_t row = 0; row < rows.count; ++row) {
      for (std::int64_t i = 0; i < panels.count(); ++i) {
        const Panel panel = panels[i];
        pack_row(from + row * rows.stride + panel.column,
                 std::min(panel.columns(), rows.dim - panel.column), hn::Set(kFloats, scale),
                 to + panel.column * panel_rows + row * panel.columns(), watch);
      }
    }
  });
  return watch.all_finite();
}

/// Four elements of each of the rows `from`, from + step, ..., as many as fill a vector.
template <class Tag, class T>
HWY_INLINE hn::Vec<Tag> load_fours(Tag tag, const T* from, std::int64_t step) {
  if constexpr (hn::MaxLanes(Tag()) == 4) {
    return load(tag, from);
  } else {
    const hn::Half<Tag> half;
    constexpr auto kRows = static_cast<std::int64_t>(hn::MaxLanes(Tag())) / 8;
    return hn::Combine(tag, load_fours(half, from + kRows * step, step),
                       load_fours(half, from, step));
  }
}
/// The same of rows row, row + 4, ... and elements from d on, with zeros for what is outside.
template <class T>
HWY_INLINE Vector load_fours_inside(const T* from, const HeadRows& rows, std::int64_t row,
                                    std::int64_t d) {
  alignas(64) float values[kLanes] = {};
  for (std::int64_t i = 0; i < kLanes && row + i / 4 * 4 < rows.count; ++i) {
    if (d + i % 4 < rows.dim)
      values[i] = static_cast<float>(from[(row + i / 4 * 4) * rows.stride + d + i % 4]);
  }
  return hn::Load(kFloats, values);
}

/// Each group of four lanes is a square: its row i in vector i, then its column i.
HWY_INLINE void transpose_fours(Vector (&x)[4]) {
  const hn::RebindToUnsigned<decltype(kFloats)> words;
  const hn::RepartitionToWide<decltype(words)> pairs;
  const auto interleaved = [&](auto upper, Vector a, Vector b) HWY_ATTR {
    const auto u = hn::BitCast(words, a), v = hn::BitCast(words, b);
    return hn::BitCast(pairs,
                       upper ? hn::InterleaveUpper(words, u, v) : hn::InterleaveLower(words, u, v));
  };
  const std::false_type lower;
  const std::true_type upper;
  const auto low01 = interleaved(lower, x[0], x[1]), low23 = interleaved(lower, x[2], x[3]),
             high01 = interleaved(upper, x[0], x[1]), high23 = interleaved(upper, x[2], x[3]);
  x[0] = hn::BitCast(kFloats, hn::InterleaveLower(pairs, low01, low23));
  x[1] = hn::BitCast(kFloats, hn::InterleaveUpper(pairs, low01, low23));
  x[2] = hn::BitCast(kFloats, hn::InterleaveLower(pairs, high01, high23));
  x[3] = hn::BitCast(kFloats, hn::InterleaveUpper(pairs, high01, high23));
}

/// Panels [count / kTileColumns][dim][kTileColumns]: B of a product over the head dim, whose
/// columns are the rows of the view, zeros past their end.
inline bool pack_transposed(const HeadRows& rows, float* to) {
  FiniteWatch watch;
  with_elements(rows, [&](const auto* from) {
    for (std::int64_t row = 0; row < round_up(rows.count, kTileColumns); row += kLanes) {
      float* panel = to + row / kTileColumns * kTileColumns * rows.dim + row % kTileColumns;
      for (std::int64_t d = 0; d < rows.dim; d += 4) {
        const bool inside = row + kLanes <= rows.count && d + 4 <= rows.dim;
        Vector x[4];
#pragma GCC unroll 4
        for (std::int64_t i = 0; i < 4; ++i) {
          x[i] = inside ? load_fours(kFloats, from + (row + i) * rows.stride + d, 4 * rows.stride)
                        : load_fours_inside(from, rows, row + i, d);
          watch.see(x[i]);
        }
        transpose_fours(x);
        const std::int64_t left = std::min<std::int64_t>(4, rows.dim - d);
        for (std::int64_t i = 0; i < left; ++i)
          hn::Store(x[i], kFloats, panel + (d + i) * kTileColumns);
      }
    }
  });
  return watch.all_finite();
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_PACK_CPU_H
