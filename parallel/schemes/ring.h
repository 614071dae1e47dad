#pragma once
// What the ring family shares with the schemes that wrap it.

#include "parallel/schemes/level_ring.h"

namespace longhaul::parallel {

/// What a scheme of the family (Scheme::ring) makes of its members.
struct RingKind {
  std::vector<RingLevel> levels;
  Circulating backward = Circulating::keys;
};
/// The generator of such a scheme over all ranks of the axis.
ProgramGenerator prepare_ring(const SchemeInputs& inputs);

}  // namespace longhaul::parallel
