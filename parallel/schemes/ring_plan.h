#pragma once
// Which way, and how far, each block of a ring travels: what all members of a ring agree on.

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

/// Which way round: to the next member, or to the one before.
enum class Heading : unsigned char { onward, back };
constexpr Heading kHeadings[] = {Heading::onward, Heading::back};

/// Hops at the outer levels: the tuple, with zeros from the next level on, and the ways taken.
struct Path {
  int tuple = 0;
  unsigned back = 0;  ///< bit `level` where that level was gone back
};

/// The part of a ring that all its members agree on: who sees which block, and so how far each
/// travels. Members are numbered by their position, outer levels first.
///
/// A member is reached from a block's home by a tuple of hops onward, one a level; tuples are
/// numbered like members. At each level a block goes onward and back where that takes fewer hops
/// than one way, as those who see it lie on both sides: under a two-sided window, for example.
/// Where the busiest member would send more for it, all blocks of that level go one way. Either way
/// a block travels no further than the last position below which somebody sees it, and its
/// accumulator returns home from there. `hop` counts the hops of one level in one heading.
class RingPlan {
 public:
  RingPlan(const Members& members, std::vector<RingLevel> levels, Circulating circulating);

  Circulating circulating() const { return circulating_; }
  int depth() const { return static_cast<int>(levels_.size()); }
  int channel(int level) const { return levels_[static_cast<std::size_t>(level)].channel; }

  /// `member` moved by `hops` round a level's ring.
  int moved(int member, int level, Heading heading, int hops) const;
  /// `path` and then `hop` hops of `level`.
  Path after(const Path& path, int level, Heading heading, int hop) const;
  /// The home of the block that is at `member` after the hops of a tuple.
  int block_at(int member, int tuple) const;

  /// The last hop of a block that took `path`; 0 when it stays, or did not take that path.
  int last(int block, const Path& path, int level, Heading heading) const;
  /// The largest of any block.
  int longest(int level, Heading heading) const;
  /// Whether an accumulator exists once hop `hop` is done: somebody at hops 1..hop sees the block.
  bool accumulated(int block, const Path& path, int level, Heading heading, int hop) const;

 private:
  struct Reach {
    int onward = 0, back = 0;
    int on(Heading heading) const { return heading == Heading::onward ? onward : back; }
  };
  int size(int level) const { return levels_[static_cast<std::size_t>(level)].size; }
  /// Members below one position of the level.
  int stride(int level) const { return strides_[static_cast<std::size_t>(level)]; }
  int visitor(int block, int tuple) const;
  /// Members at tuples [begin, end) of the block that see it.
  int seen(int block, int begin, int end) const;
  Reach reach(int block, int tuple, int level) const;
  void plan_level(const Members& members, int level);
  bool took(int block, const Path& path, int level) const;

  std::vector<RingLevel> levels_;
  Circulating circulating_;
  int members_ = 1;
  std::vector<int> strides_;
  std::vector<int> counts_;                  // [block][members + 1]: prefix sums over tuples
  std::vector<std::vector<Reach>> reaches_;  // [level][block][outer positions]
  std::vector<Reach> longest_;               // [level]
};

}  // namespace longhaul::parallel
