#pragma once
// The ring family in one recursive generator: blocks circulate round one or more nested rings, and
// in backward their gradient accumulators follow one hop behind. Ring Attention (Liu et al. 2023)
// is one level with circulating keys and values; BurstAttention's backward (Sun et al. 2024)
// circulates queries instead; the double ring of LoongTrain (Gu et al. 2024) and BurstEngine is two
// levels, nodes outside and the ranks of a node inside, each level on a channel of its own, so that
// an outer hop is in flight during the whole inner ring.

#include <functional>
#include <vector>

#include "parallel/schemes/ring_plan.h"

namespace longhaul::parallel {

/// What one member's part of a ring is generated from.
struct RingMember {
  Builder& builder;
  const Members& members;
  const RingPlan& plan;
  const AttentionRecords& records;
  int self = 0;                   ///< member number
  const std::vector<int>& ranks;  ///< of the members, by number
  std::string prefix;             ///< of scratch slots' names
  std::optional<runtime::DType> wire_dtype = {};
  /// Blocks are lent from member to member, not copied. Of a ring of one level.
  bool lends = false;
  /// Circulating::values: the keys of a member's block.
  std::function<View(int member)> keys = {};
};

/// Attention of views.q over all members' keys into views.out, which it overwrites.
void ring_forward(const RingMember& ring, const ForwardViews& views);
/// Its gradients into views.dq and views.dkv, which it overwrites. Circulating::queries sends
/// q_bundle and dq round, the others kv and dkv.
void ring_backward(const RingMember& ring, const BackwardViews& views);

/// Circulating::values: passes every member's keys `own` round the (one-level) ring first; returns
/// where each member's keys lie.
std::function<View(int member)> gather_keys(const RingMember& ring, const View& own);

/// Bytes per row of the context that one hop sends in backward, keys and values against queries;
/// queries when they are fewer. Burst wins only when H / H_kv is small.
Circulating cheaper_backward(const Shapes& shapes, std::optional<runtime::DType> wire_dtype);

}  // namespace longhaul::parallel
