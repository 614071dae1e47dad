#pragma once
// The ring family in one recursive generator: blocks circulate round one or more nested rings, and
// in backward their gradient accumulators follow one hop behind. Ring Attention (Liu et al. 2023)
// is one level with circulating keys and values; BurstAttention's backward (Sun et al. 2024)
// circulates queries instead; the double ring of LoongTrain (Gu et al. 2024) and BurstEngine is two
// levels, nodes outside and the ranks of a node inside, each level on a channel of its own, so that
// an outer hop is in flight during the whole inner ring.

#include <functional>
#include <vector>

#include "parallel/schemes/members.h"

namespace longhaul::parallel {

struct RingLevel {
  int size = 1;
  int channel = 0;
};

enum class Circulating : unsigned char {
  keys,    ///< k and v in one slot, with dk and dv in backward
  values,  ///< v alone; every member already holds the keys that it needs
  queries  ///< backward only: q, dout, LSE and delta, with dq
};

/// One way round a ring: who sees which block there, and so how far each block travels. Members are
/// numbered by their position: outer levels first.
///
/// A member is reached from a block's home by a tuple of hops, one a level; tuples are numbered
/// like members. Of a level within a given prefix of outer hops, a block travels no further than
/// the last position below which somebody sees it, and its accumulator returns home from there.
class RingWay {
 public:
  /// seen[block * members + tuple]: whether that member attends the block on this way. Hops lead to
  /// the next member, or, `back`, to the one before.
  RingWay(std::vector<RingLevel> levels, const std::vector<bool>& seen, bool back);

  const std::vector<RingLevel>& levels() const { return levels_; }
  int size(int level) const { return levels_[static_cast<std::size_t>(level)].size; }
  /// Members below one position of the level.
  int stride(int level) const { return strides_[static_cast<std::size_t>(level)]; }
  bool back() const { return back_; }

  /// `member` moved by `hops` round a level's ring.
  int moved(int member, int level, int hops) const;
  /// The home of the block that is at `member` after the hops of tuple `hops`, and the reverse.
  int block_at(int member, int hops) const;
  int visitor(int block, int hops) const;

  /// Whether the block moves on to hop `hop` of `level`, below the outer hops `prefix`.
  bool travels(int block, int prefix, int level, int hop) const;
  /// Its last hop there; 0 when it stays.
  int last(int block, int prefix, int level) const;
  /// Whether an accumulator exists once hop `hop` >= 1 is done: somebody at hops 1..hop sees the
  /// block.
  bool accumulated(int block, int prefix, int level, int hop) const;

 private:
  /// Members at hop tuples [begin, end) from the block's home that see it.
  int seen(int block, int begin, int end) const;

  std::vector<RingLevel> levels_;
  std::vector<int> strides_;
  bool back_;
  int members_ = 1;
  std::vector<int> counts_;  // [block][members + 1]: prefix sums over hop tuples
};

/// The part of a ring that all its members agree on. In a ring of one level a block goes both ways
/// where that takes fewer hops: those who see it lie on both sides of its home, as under a
/// two-sided window, and the longest stretch of members that do not see it lies between.
class RingPlan {
 public:
  RingPlan(const Members& members, const std::vector<RingLevel>& levels, Circulating circulating);

  Circulating circulating() const { return circulating_; }
  /// Onward, and back where any block takes that way.
  const std::vector<RingWay>& ways() const { return ways_; }

 private:
  Circulating circulating_;
  std::vector<RingWay> ways_;
};

/// What one member's part of a ring is generated from.
struct RingMember {
  Builder& builder;
  const Members& members;
  const RingPlan& plan;
  int self = 0;                   ///< member number
  const std::vector<int>& ranks;  ///< of the members, by number
  std::string prefix;             ///< of scratch slots' names
  std::optional<runtime::DType> wire_dtype = {};
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
