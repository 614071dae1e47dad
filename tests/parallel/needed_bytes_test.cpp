// What schemes send when not every block is needed everywhere: the lower bound of group_cast from a
// bitmap, the fewest hops of rings, halos of windows, and nothing where no document crosses a rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <random>
#include <tuple>

#include "runtime/error.h"
#include "tests/support/random_masks.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/sent_bytes.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Mask;
using runtime::DType;
using test::Sent;
using test::sent;
using test::show;

/// Bytes from the owner of keys to each rank that sees them, from a bitmap a head: row by row.
std::vector<std::map<int, std::int64_t>> set_lower_bound(const HeadMasks& masks,
                                                         const Layout& layout, const Shapes& shapes,
                                                         bool gradients,
                                                         std::int64_t bytes_of_row) {
  const std::int64_t n = masks.tokens();
  std::vector<int> owner(static_cast<std::size_t>(n));
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    for (const std::int64_t token : layout.tokens_of(rank))
      owner[static_cast<std::size_t>(token)] = rank;
  }
  const auto rank_of = [&](std::int64_t token) { return owner[static_cast<std::size_t>(token)]; };
  std::vector<std::map<int, std::int64_t>> to(static_cast<std::size_t>(layout.ranks()));
  const int group = shapes.heads / shapes.kv_heads;
  for (int kv = 0; kv < shapes.kv_heads; ++kv) {
    test::Bitmap seen(layout.ranks(), n);
    for (int head = kv * group; head < (kv + 1) * group; ++head) {
      const test::Bitmap visible(n, n, masks.of(head).slices());
      for (std::int64_t q = 0; q < n; ++q) {
        for (std::int64_t k = 0; k < n; ++k) {
          if (visible.at(q, k) > 0) seen.at(rank_of(q), k) = 1;
        }
      }
    }
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      for (std::int64_t k = 0; k < n; ++k) {
        const int home = rank_of(k);
        if (rank == home || seen.at(rank, k) == 0) continue;
        if (gradients) {
          to[static_cast<std::size_t>(rank)][home] += bytes_of_row;
        } else {
          to[static_cast<std::size_t>(home)][rank] += bytes_of_row;
        }
      }
    }
  }
  return to;
}

TEST(NeededBytes, GroupCastIsTheSetLowerBound) {
  const std::int64_t n = 61;
  const Shapes shapes{8, 2, 8, 4, DType::bfloat16};
  auto masks = test::assorted_masks(n);
  std::vector<std::pair<std::string, HeadMasks>> all(masks.size());
  for (std::size_t i = 0; i < masks.size(); ++i) all[i] = {masks[i].name, masks[i].mask};
  all.emplace_back("by head", test::masks_by_head(n, shapes.heads));
  for (const auto& [mask_name, mask] : all) {
    for (const int ranks : {2, 3, 5, 8}) {
      for (const Layout& layout : test::all_layouts(mask, 1, ranks)) {
        SCOPED_TRACE(runtime::concat(mask_name, " P=", ranks, " ", name(layout.kind())));
        auto bound = set_lower_bound(mask, layout, shapes, false, 12 * 2);
        EXPECT_EQ(sent("group_cast", mask, layout, shapes, Direction::forward).to, bound);
        for (const DType wire : {DType::float32, DType::bfloat16}) {
          auto both = bound;
          const auto back =
              set_lower_bound(mask, layout, shapes, true, 12 * runtime::size_bytes(wire));
          for (std::size_t rank = 0; rank < back.size(); ++rank) {
            for (const auto& [peer, bytes] : back[rank]) both[rank][peer] += bytes;
          }
          EXPECT_EQ(sent("group_cast", mask, layout, shapes, Direction::backward, wire).to, both);
        }
      }
    }
  }
}

TEST(NeededBytes, WindowHopsAreTheHaloBound) {
  // Keys of a window behind the query travel ceil((w-1)/n) hops, or to the last rank.
  const Shapes shapes{2, 1, 4, 4, DType::float32};
  for (const int ranks : {2, 3, 5, 8}) {
    for (const std::int64_t n : {1, 4, 7}) {
      const std::int64_t tokens = n * ranks, block = n * 8 * 4;
      const Layout layout(LayoutKind::contiguous, tokens, 1, ranks);
      for (std::int64_t w = 1; w <= tokens; ++w) {
        const Mask window = Mask::from_slices(tokens, {{0, tokens, 0, tokens, 1 - w, 0}});
        const std::int64_t halo = (w - 1 + n - 1) / n;
        std::int64_t hops = 0;
        for (int rank = 0; rank < ranks; ++rank)
          hops += std::min<std::int64_t>(halo, ranks - 1 - rank);
        const Sent forward = sent("ring", window, layout, shapes, Direction::forward);
        EXPECT_EQ(forward.messages, hops) << "w=" << w << " n=" << n << " P=" << ranks;
        EXPECT_EQ(forward.total(), hops * block);
        // In backward the blocks travel as far; their gradients hop by hop, and one hop home.
        const Sent backward = sent("ring", window, layout, shapes, Direction::backward);
        EXPECT_EQ(backward.total(), 2 * hops * block) << "w=" << w << " n=" << n << " P=" << ranks;
      }
    }
  }
}

TEST(NeededBytes, TwoSidedWindowsCostBothHalosAndNoRound) {
  const Shapes shapes{2, 1, 4, 4, DType::float32};
  for (const int ranks : {2, 3, 5, 8}) {
    for (const std::int64_t n : {1, 4, 7}) {
      const std::int64_t tokens = n * ranks, block = n * 8 * 4;
      const Layout layout(LayoutKind::contiguous, tokens, 1, ranks);
      for (std::int64_t w = 1; w <= tokens; ++w) {
        const Mask window = Mask::from_slices(tokens, {{0, tokens, 0, tokens, 1 - w, w - 1}});
        const std::int64_t halo = (w - 1 + n - 1) / n;
        std::int64_t hops = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          hops +=
              std::min<std::int64_t>(halo, ranks - 1 - rank) + std::min<std::int64_t>(halo, rank);
        }
        for (const char* name : {"ring", "ring_self_attention"}) {
          SCOPED_TRACE(runtime::concat(name, " w=", w, " n=", n, " P=", ranks));
          const Expression options = name;
          EXPECT_EQ(sent(options, window, layout, shapes, Direction::forward).total(),
                    hops * block);
          EXPECT_EQ(sent(options, window, layout, shapes, Direction::backward).total(),
                    2 * hops * block);
        }
      }
    }
  }
  // A window behind the query over zigzag: neighbours on both sides, not P - 1 hops.
  const Layout zigzag(LayoutKind::zigzag, 64, 1, 8);
  const Mask window = Mask::from_slices(64, {{0, 64, 0, 64, -3, 0}});
  EXPECT_EQ(sent("ring", window, zigzag, shapes, Direction::forward).messages, 14);
}

TEST(NeededBytes, NothingMovesWhereNoDocumentCrossesARank) {
  const int ranks = 6;
  const std::int64_t n = 10, tokens = n * ranks;
  std::vector<std::int64_t> offsets;
  for (std::int64_t at = 0; at <= tokens; at += n / 2) offsets.push_back(at);
  const Mask documents = Mask::documents(offsets);
  const Layout layout(LayoutKind::contiguous, tokens, 1, ranks);
  const Shapes shapes{6, 2, 4, 4, DType::float32};
  int checked = 0;
  for (const Expression& options : test::all_schemes(ranks, 6, 2)) {
    if (options.name == "all_gather" || options.name == "ulysses" || options.name == "usp")
      continue;  // these send whatever the mask
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      EXPECT_EQ(sent(options, documents, layout, shapes, direction).messages, 0)
          << show(options) << " " << name(direction);
      ++checked;
    }
  }
  EXPECT_GE(checked, 2 * 7);
}

// ---- rings
// ------------------------------------------------------------------------------------------------

/// How far a block goes round one level, and its hops and its gradient's.
struct Hops {
  int onward = 0, back = 0;
  std::int64_t gradient = 0;
  std::int64_t block() const { return onward + back; }
};
/// A gradient starts where the first one sees the block, ends where the last one does, and returns
/// in one hop.
Hops hops(const std::vector<bool>& needed, int onward, int back) {
  const int size = static_cast<int>(needed.size());
  int first_onward = onward + 1, first_back = back + 1;
  for (int hop = onward; hop >= 1; --hop) {
    if (needed[static_cast<std::size_t>(hop)]) first_onward = hop;
  }
  for (int hop = back; hop >= 1; --hop) {
    if (needed[static_cast<std::size_t>(size - hop)]) first_back = hop;
  }
  return {onward, back, onward + 1 - first_onward + back + 1 - first_back};
}
/// Positions 1 .. size - 1 of a level need the block or do not: the fewest hops for the block, then
/// for the gradient, then back, of every split into hops onward and back; or of those that only go
/// onward.
Hops fewest(const std::vector<bool>& needed, bool both_ways) {
  const int size = static_cast<int>(needed.size());
  Hops best{size, size, size};
  for (int onward = 0; onward < size; ++onward) {
    for (int back = 0; back == 0 || (both_ways && onward + back < size); ++back) {
      bool reaches_all = true;
      for (int hop = 1; hop < size; ++hop) {
        if (needed[static_cast<std::size_t>(hop)] && hop > onward && size - hop > back)
          reaches_all = false;
      }
      const Hops tried = hops(needed, onward, back);
      if (reaches_all && std::tuple(tried.block(), tried.gradient, back) <
                             std::tuple(best.block(), best.gradient, best.back))
        best = tried;
    }
  }
  return best;
}

struct Totals {
  std::int64_t blocks = 0, gradients = 0;
};

/// Hops of all blocks round one level of a ring.
class Level {
 public:
  Level(int size, int ranks) : size_(size), sent_{Sends(ranks), Sends(ranks)} {}
  /// `sender(hop)`: the rank that holds the block after `hop` hops onward.
  void add(const std::vector<bool>& needed, const std::function<int(int)>& sender) {
    for (const bool both : {false, true}) {
      const Hops chosen = fewest(needed, both);
      for (int hop = 0; hop < chosen.onward; ++hop) ++sent_[both].at(sender(hop));
      for (int hop = 0; hop < chosen.back; ++hop) ++sent_[both].at(sender((size_ - hop) % size_));
      totals_[both].blocks += chosen.block();
      totals_[both].gradients += chosen.gradient;
    }
  }
  /// Both ways, unless the busiest rank then sends more.
  Totals totals() const { return totals_[sent_[1].most() <= sent_[0].most()]; }

 private:
  struct Sends {
    explicit Sends(int ranks) : of(static_cast<std::size_t>(ranks)) {}
    int& at(int rank) { return of[static_cast<std::size_t>(rank)]; }
    int most() const { return *std::ranges::max_element(of); }
    std::vector<int> of;
  };
  int size_;
  std::array<Sends, 2> sent_;
  std::array<Totals, 2> totals_;
};

/// Those of a double ring of outer x inner; `needs(rank, block)`.
Totals double_ring_hops(int outer, int inner, const std::function<bool(int, int)>& needs) {
  Level between(outer, outer * inner), within(inner, outer * inner);
  for (int block = 0; block < outer * inner; ++block) {
    const auto rank = [&](int node_hop, int hop) {
      return (block / inner + node_hop) % outer * inner + (block % inner + hop) % inner;
    };
    std::vector<bool> nodes;
    for (int node_hop = 0; node_hop < outer; ++node_hop) {
      std::vector<bool> ranks;
      for (int hop = 0; hop < inner; ++hop) ranks.push_back(needs(rank(node_hop, hop), block));
      within.add(ranks, [&](int hop) { return rank(node_hop, hop); });
      nodes.push_back(std::ranges::find(ranks, true) != ranks.end());
    }
    between.add(nodes, [&](int node_hop) { return rank(node_hop, 0); });
  }
  return {between.totals().blocks + within.totals().blocks,
          between.totals().gradients + within.totals().gradients};
}

TEST(NeededBytes, BlocksOfRingsTakeTheFewestHopsOfEveryLevel) {
  const int n = 3;
  std::mt19937 random(11);
  const Shapes shapes{1, 1, 4, 4, DType::float32};
  const std::int64_t block = n * 8 * 4;
  for (const auto& [outer, inner] :
       {std::pair{1, 2}, {1, 5}, {1, 8}, {2, 3}, {3, 2}, {3, 3}, {2, 4}, {4, 3}, {3, 5}, {5, 4}}) {
    const int ranks = outer * inner;
    const std::int64_t tokens = n * ranks;
    const Layout layout(LayoutKind::contiguous, tokens, 1, ranks);
    std::vector<HeadMasks> masks;
    for (const auto& named : test::assorted_masks(tokens)) masks.emplace_back(named.mask);
    for (int i = 0; i < 20; ++i) {
      masks.emplace_back(Mask::from_slices(
          tokens, test::random_small_disjoint_slices(tokens, tokens, 3 * ranks, random)));
    }
    for (std::size_t i = 0; i < masks.size(); ++i) {
      const test::Bitmap visible(tokens, tokens, masks[i].of(0).slices());
      const auto sees = [&](int rank, int other) {
        for (std::int64_t q = rank * n; q < (rank + 1) * n; ++q) {
          for (std::int64_t k = other * n; k < (other + 1) * n; ++k) {
            if (visible.at(q, k) > 0) return true;
          }
        }
        return false;
      };
      const auto seen_by = [&](int rank, int other) { return sees(other, rank); };
      Expression options("ring");
      if (outer > 1) {
        options = Expression("double_ring")
                      .with("outer", outer)
                      .with("inner", inner)
                      .with("backward", "ring");
      }
      SCOPED_TRACE(runtime::concat(show(options), " P=", ranks, " mask ", i));
      const Totals keys = double_ring_hops(outer, inner, sees);
      const auto bytes = [&](Direction direction) {
        return sent(options, masks[i], layout, shapes, direction).total();
      };
      EXPECT_EQ(bytes(Direction::forward), keys.blocks * block);
      EXPECT_EQ(bytes(Direction::backward), (keys.blocks + keys.gradients) * block);
      options = outer > 1 ? options.with("backward", "burst") : Expression("burst");
      const Totals queries = double_ring_hops(outer, inner, seen_by);
      EXPECT_EQ(bytes(Direction::backward),
                queries.blocks * n * (8 * 4 + 12) + queries.gradients * n * 4 * 4);
    }
  }
}

TEST(NeededBytes, TheBusiestRankOfARingSendsNoMoreThanOneWayRound) {
  // Packed documents over balanced chunks: ranks that see a block lie on both sides of its home,
  // and going both ways for the fewest hops would gather them on one rank.
  const std::int64_t n = 7 * 64;
  std::mt19937 random(5);
  const Shapes shapes{2, 1, 4, 4, DType::float32};
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<std::int64_t> offsets{0, n};
    for (int i = 0; i < 6; ++i)
      offsets.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n)));
    std::ranges::sort(offsets);
    const HeadMasks documents = Mask::documents(offsets);
    const Layout layout = Layout::make(LayoutKind::balanced, documents, 1, 7);
    const Sent forward = sent("ring", documents, layout, shapes, Direction::forward);
    for (int rank = 0; rank < 7; ++rank) {
      std::int64_t others = 0;  // what passes in a whole round
      for (int other = 0; other < 7; ++other) others += layout.rows(other) * 8 * 4;
      const int next = (rank + 1) % 7;
      EXPECT_LE(forward.of(rank), others - layout.rows(next) * 8 * 4) << "rank " << rank;
    }
  }
}

TEST(NeededBytes, TwoSidedWindowsCostADoubleRingBothHalos) {
  // A window that sees the neighbour on either side. A rank within its node sends two blocks; at
  // the border of a node one hop leads to the next node, at the far end, and one more within it.
  const std::int64_t n = 4;
  const Shapes shapes{2, 1, 4, 4, DType::float32};
  for (const int nodes : {2, 3, 5}) {
    for (const int per_node : {3, 4, 8}) {
      const std::int64_t tokens = n * nodes * per_node;
      const Layout layout(LayoutKind::contiguous, tokens, 1, nodes * per_node);
      const Mask window = Mask::from_slices(tokens, {{0, tokens, 0, tokens, -2, 2}});
      const Expression options =
          Expression("double_ring").with("outer", nodes).with("inner", per_node);
      const std::int64_t inside = nodes * (per_node - 2) * 2, borders = (2 * nodes - 2) * 3,
                         ends = 2;
      const Sent forward = sent(options, window, layout, shapes, Direction::forward);
      EXPECT_EQ(forward.messages, inside + borders + ends) << nodes << " x " << per_node;
      std::int64_t between = 0;
      for (int rank = 0; rank < layout.ranks(); ++rank) {
        between += link_bytes(forward.to[static_cast<std::size_t>(rank)], rank,
                              nodes_in_order(layout.ranks(), per_node))
                       .between_nodes;
      }
      EXPECT_EQ(between, (2 * nodes - 2) * n * 8 * 4);  // as few as any scheme of whole blocks
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel
