// Zigzag inside every document, without padding. The rule and its bounds stand in layout.h.

#include <algorithm>

#include "parallel/layout_plan.h"

namespace longhaul::parallel {
namespace {

/// The area of `count` causal rows behind `before` others.
std::int64_t causal_area(std::int64_t before, std::int64_t count) {
  return count * before + (count % 2 == 0 ? count / 2 * (count + 1) : (count + 1) / 2 * count);
}

}  // namespace

LayoutPlan plan_document_zigzag(const attention::HeadMasks& masks, int ranks) {
  const std::vector<std::int64_t> offsets = attention::independent_parts(masks);
  const std::int64_t chunks = 2 * std::int64_t{ranks};
  LayoutPlan plan;
  plan.runs.resize(static_cast<std::size_t>(ranks));
  std::vector<std::int64_t> area(static_cast<std::size_t>(ranks)), length(2 * area.size());
  std::int64_t turn = 0, total_area = 0;  // whose turn it is to take a token that is over
  for (std::size_t part = 0; part + 1 < offsets.size(); ++part) {
    const std::int64_t tokens = offsets[part + 1] - offsets[part];
    const std::int64_t base = tokens / chunks, over = tokens % chunks;
    const std::int64_t mean_area = total_area / ranks;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      const std::int64_t place = (rank - turn + ranks) % ranks;
      const std::int64_t due = over / ranks + (place < over % ranks ? 1 : 0);  // 0, 1 or 2
      const bool takes_late =
          due == 2 || (due == 1 && area[static_cast<std::size_t>(rank)] <= mean_area);
      length[static_cast<std::size_t>(rank)] = base + due - (takes_late ? 1 : 0);
      length[static_cast<std::size_t>(chunks - 1 - rank)] = base + (takes_late ? 1 : 0);
    }
    turn = (turn + over) % ranks;
    plan.chunk_tokens = std::max(plan.chunk_tokens, base + (over > 0 ? 1 : 0));
    std::int64_t begin = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t count = length[static_cast<std::size_t>(chunk)];
      if (count == 0) continue;
      const auto rank = static_cast<std::size_t>(std::min(chunk, chunks - 1 - chunk));
      append_range(plan.runs[rank], offsets[part] + begin, offsets[part] + begin + count);
      area[rank] += causal_area(begin, count);
      begin += count;
    }
    total_area += causal_area(0, tokens);
  }
  return plan;
}

}  // namespace longhaul::parallel
