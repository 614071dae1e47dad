#pragma once
// What the ring family shares with the schemes that wrap it: rings by name.

#include "parallel/schemes/level_ring.h"

namespace longhaul::parallel {

struct RingKind {
  std::vector<RingLevel> levels;
  Circulating backward = Circulating::keys;
};
/// `options.name` is ring, burst, auto or double_ring, over `members`; shapes and wire dtype decide
/// what an automatic backward circulates.
RingKind ring_kind(const SchemeOptions& options, int members, const Shapes& shapes,
                   std::optional<runtime::DType> wire_dtype);

}  // namespace longhaul::parallel
