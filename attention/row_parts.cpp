#include "attention/row_parts.h"

#include <algorithm>

namespace longhaul::attention {
namespace {

/// Enough for the threads of a machine to share, and few enough that merging is nothing beside a
/// part.
constexpr std::int64_t kItems = 32;

}  // namespace

RowParts::RowParts(const TilePlan& tiles, std::int64_t heads) {
  const std::int64_t items = std::max<std::int64_t>(1, tiles.q_blocks() * heads);
  const std::int64_t wanted = (kItems + items - 1) / items;
  for (std::int64_t qb = 0; qb < tiles.q_blocks(); ++qb) {
    const std::int64_t count = tiles.tiles_before(qb, tiles.k_blocks());
    const std::int64_t cuts = std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, count));
    if (cuts > 1) cut_rows_.push_back({qb, slots_, cuts});
    for (std::int64_t i = 0; i < cuts; ++i)
      parts_.push_back({qb, i * count / cuts, (i + 1) * count / cuts, cuts > 1 ? slots_++ : -1});
  }
  const auto work = [&](const RowPart& part) {
    const std::int64_t count = tiles.tiles_before(part.qb, tiles.k_blocks());
    return count == 0 ? 0 : tiles.work(part.qb) * (part.last - part.first) / count;
  };
  std::stable_sort(parts_.begin(), parts_.end(),
                   [&](const RowPart& a, const RowPart& b) { return work(a) > work(b); });
}

}  // namespace longhaul::attention
