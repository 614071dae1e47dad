// Documents fill ranks in order, cut in heads and tails where they do not fit. The rule stands in
// layout.h.

#include <algorithm>

#include "parallel/layout_plan.h"

namespace longhaul::parallel {

LayoutPlan plan_packed(const attention::HeadMasks& masks, int ranks) {
  const std::vector<std::int64_t> offsets = attention::independent_parts(masks);
  const std::int64_t tokens = masks.tokens();
  LayoutPlan plan;
  plan.runs.resize(static_cast<std::size_t>(ranks));
  std::int64_t rank = 0, room = part_begin(tokens, 1, ranks);
  for (std::size_t part = 0; part + 1 < offsets.size(); ++part) {
    std::int64_t begin = offsets[part], end = offsets[part + 1];
    while (begin < end) {
      while (room == 0) {
        ++rank;
        room = part_begin(tokens, rank + 1, ranks) - part_begin(tokens, rank, ranks);
      }
      auto& runs = plan.runs[static_cast<std::size_t>(rank)];
      const std::int64_t taken = std::min(end - begin, room);
      const std::int64_t head = taken == end - begin ? taken : taken / 2, tail = taken - head;
      append_range(runs, begin, begin + head);
      append_range(runs, end - tail, end);
      plan.chunk_tokens = std::max(plan.chunk_tokens, std::max(head, tail));
      begin += head;
      end -= tail;
      room -= taken;
    }
  }
  return plan;
}

}  // namespace longhaul::parallel
