#include "parallel/schemes/members.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::parallel {

Members::Members(const attention::HeadMasks& masks, std::vector<std::vector<Run>> runs,
                 int head_begin, int head_end)
    : runs_(std::move(runs)) {
  LONGHAUL_CHECK(head_end <= masks.heads(), "masks of ", masks.heads(), " heads for ", head_end);
  for (const auto& group : masks.groups()) {
    const int begin = std::max(group.head_begin, head_begin),
              end = std::min(group.head_end, head_end);
    if (begin < end) groups_.push_back({begin - head_begin, end - head_begin, &group.mask});
  }
  for (const std::vector<Run>& member : runs_) {
    std::int64_t rows = 0;
    for (const Run& run : member) rows += run.count;
    rows_.push_back(rows);
    indices_.emplace_back(member);
  }
}

namespace {
std::vector<std::vector<Run>> all_runs(const Layout& layout) {
  std::vector<std::vector<Run>> runs;
  for (int rank = 0; rank < layout.ranks(); ++rank) runs.push_back(layout.runs(rank));
  return runs;
}
}  // namespace

Members::Members(const SchemeInputs& inputs)
    : Members(inputs.masks, all_runs(inputs.layout), 0, inputs.shapes.heads) {}

std::int64_t Members::longest(int except) const {
  std::int64_t longest = 0;
  for (int member = 0; member < size(); ++member) {
    if (member != except) longest = std::max(longest, rows(member));
  }
  return longest;
}

Bands Members::bands(int query_member, int key_member) const {
  return bands(query_member, index(key_member));
}

Bands Members::bands(int query_member, const attention::TokenIndex& keys) const {
  Bands all;
  for (const Group& group : groups_) {
    all.push_back(
        {group.head_begin, group.head_end, attention::cut(*group.mask, index(query_member), keys)});
  }
  return all;
}

bool Members::visible(int query_member, int key_member) const {
  return std::ranges::any_of(groups_, [&](const Group& group) {
    return attention::any_visible(*group.mask, index(query_member), index(key_member));
  });
}

std::vector<Run> joined_runs(const Layout& layout, const std::vector<int>& ranks) {
  std::vector<Run> runs;
  for (const int rank : ranks)
    runs.insert(runs.end(), layout.runs(rank).begin(), layout.runs(rank).end());
  return runs;
}

ForwardViews add_forward_slots(Builder& builder, const SchemeInputs& inputs, int rank) {
  const AttentionRecords records(inputs.shapes);
  return {builder.add_slot(input_slot("q", records.q, inputs, rank)),
          builder.add_slot(input_slot("kv", records.kv, inputs, rank)),
          builder.add_slot(output_slot("out", records.partial, inputs, rank))};
}

BackwardViews add_backward_slots(Builder& builder, const SchemeInputs& inputs, int rank) {
  const AttentionRecords records(inputs.shapes);
  return {builder.add_slot(input_slot("q_bundle", records.q_bundle, inputs, rank)),
          builder.add_slot(input_slot("kv", records.kv, inputs, rank)),
          builder.add_slot(output_slot("dq", records.dq, inputs, rank)),
          builder.add_slot(output_slot("dkv", records.dkv, inputs, rank))};
}

}  // namespace longhaul::parallel
