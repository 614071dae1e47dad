#pragma once
// The work of a forward call: every row of tiles is an item, and where there are few items, each is
// cut into parts by its keys, whose results are merged in order. Decided by the shape alone, so
// results do not depend on the number of threads.

#include <cstdint>
#include <vector>

#include "attention/tiles.h"

namespace longhaul::attention {

/// Some of the tiles of a row that are not empty: [first, last) of them, in the order of the keys.
struct RowPart {
  std::int64_t qb = 0, first = 0, last = 0;
  std::int64_t slot = -1;  ///< where its result goes; -1: it is the whole row
};
/// A row of tiles in parts, whose results are in slots [slot, slot + parts).
struct CutRow {
  std::int64_t qb = 0, slot = 0, parts = 0;
};

class RowParts {
 public:
  /// Of one head out of `heads`.
  RowParts(const TilePlan& tiles, std::int64_t heads);

  const std::vector<RowPart>& parts() const { return parts_; }  ///< longest first
  const std::vector<CutRow>& cut_rows() const { return cut_rows_; }
  /// Results of parts that a head has.
  std::int64_t slots() const { return slots_; }

 private:
  std::vector<RowPart> parts_;
  std::vector<CutRow> cut_rows_;
  std::int64_t slots_ = 0;
};

}  // namespace longhaul::attention
