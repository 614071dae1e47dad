#pragma once
// What the ring family shares with the schemes that wrap it: rings by name.

#include "parallel/schemes/level_ring.h"

namespace longhaul::parallel {

struct RingKind {
  std::vector<RingLevel> levels;
  Circulating backward = Circulating::keys;
};
/// `options.name` is ring, burst, auto or double_ring, over `members`; shapes and wire dtype decide
/// what an automatic backward circulates. Throws Error(config) for degrees that do not fit.
RingKind ring_kind(const SchemeOptions& options, int members, const Shapes& shapes,
                   std::optional<runtime::DType> wire_dtype);
/// Of a double ring: degrees that do not make up the ranks.
std::optional<Refusal> refuse_double_ring(const Combination& combination);

}  // namespace longhaul::parallel
