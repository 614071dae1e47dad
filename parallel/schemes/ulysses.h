#pragma once
// What ulysses and usp share: the exchange of heads for tokens around a ring.

#include "parallel/schemes/ring.h"

namespace longhaul::parallel {

/// Where a rank stands: `ring` of R members, `head` of U.
struct HeadGrid {
  int heads = 1, rings = 1;  // U, R
  /// Which ranks sit next to each other: rank = ring * U + head, so that the all-to-all runs inside
  /// a node; or rank = head * R + ring.
  bool heads_inside = true;
  int ring_of(int rank) const { return heads_inside ? rank / heads : rank % rings; }
  int head_of(int rank) const { return heads_inside ? rank % heads : rank / rings; }
  int rank(int ring, int head) const {
    return heads_inside ? ring * heads + head : head * rings + ring;
  }
};

/// Whether `degree` ranks can share the heads.
bool heads_divide(int heads, int kv_heads, int degree);

/// Heads change places among the ranks of each ring position; `ring`, a scheme with Scheme::ring,
/// attends over the positions.
ProgramGenerator prepare_exchange(const SchemeInputs& inputs, const HeadGrid& grid,
                                  const Expression& ring);

}  // namespace longhaul::parallel
