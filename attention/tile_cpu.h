// The inner loop of products (runtime/tile_cpu.h) by its names here, and the panels of a packed B.

#if defined(LONGHAUL_ATTENTION_TILE_CPU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_ATTENTION_TILE_CPU_H
#undef LONGHAUL_ATTENTION_TILE_CPU_H
#else
#define LONGHAUL_ATTENTION_TILE_CPU_H
#endif

#include <cstdint>

#include "runtime/tile_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using runtime::HWY_NAMESPACE::Into;
using runtime::HWY_NAMESPACE::kFloats;
using runtime::HWY_NAMESPACE::kLanes;
using runtime::HWY_NAMESPACE::kTileColumns;
using runtime::HWY_NAMESPACE::kTileRows;
using runtime::HWY_NAMESPACE::kTileVectors;
using runtime::HWY_NAMESPACE::multiply;
using runtime::HWY_NAMESPACE::Operand;
using runtime::HWY_NAMESPACE::padded_to_vectors;
using runtime::HWY_NAMESPACE::round_up;
using runtime::HWY_NAMESPACE::Vector;
using runtime::HWY_NAMESPACE::with_constant;

/// Columns cut into panels of at most kTileVectors vectors, as even as they can be: no panel is so
/// narrow that its sums are too few to keep the units busy. Panel after panel, rows of a panel's
/// width, make a packed B: the panel of column c begins at c * panel_rows.
struct Panel {
  std::int64_t column = 0, vectors = 0;
  std::int64_t columns() const { return vectors * kLanes; }
};
class Panels {
 public:
  explicit Panels(std::int64_t columns)
      : vectors_((columns + kLanes - 1) / kLanes),
        count_((vectors_ + kTileVectors - 1) / kTileVectors) {}
  std::int64_t count() const { return count_; }
  Panel operator[](std::int64_t i) const {
    const std::int64_t begin = i * vectors_ / count_;
    return {begin * kLanes, (i + 1) * vectors_ / count_ - begin};
  }

 private:
  std::int64_t vectors_, count_;
};

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_ATTENTION_TILE_CPU_H
