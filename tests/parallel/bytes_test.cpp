// What schemes send where every block is needed everywhere: the closed formulae of every scheme, by
// link class; and the automatic choice of backward.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "parallel/policy.h"
#include "runtime/error.h"
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

// ---- formulae
// ------------------------------------------------------------------------------------------------

/// The symbols of the published formulae, for n rows a rank.
struct Symbols {
  std::int64_t n, P, H, H_kv, D, D_v, e, a;
  std::int64_t keys() const { return n * H_kv * (D + D_v) * e; }      // a block of K, V
  std::int64_t key_sums() const { return n * H_kv * (D + D_v) * a; }  // its dK, dV
  std::int64_t bundle() const {
    return n * H * ((D + D_v) * e + 12);
  }                                                          // q, dout, LSE (two floats), delta
  std::int64_t query_sums() const { return n * H * D * a; }  // dq
};

struct Pass {
  std::int64_t forward, backward;
};

/// Every block goes round P - 1 hops, its accumulator too.
Pass ring_bytes(const Symbols& s) {
  return {s.keys() * (s.P - 1), (s.keys() + s.key_sums()) * (s.P - 1)};
}

/// All-to-alls of heads among U ranks. Where U exceeds H_kv keys go to several.
Pass exchange_bytes(const Symbols& s, std::int64_t U) {
  const std::int64_t most = std::max(s.H_kv, U);
  const std::int64_t keys = s.n * most * (s.D + s.D_v);
  const std::int64_t forward = s.n * s.H * (s.D * s.e + 4 * s.D_v + 8) + keys * s.e;
  const std::int64_t backward = s.bundle() + s.query_sums() + keys * (s.e + s.a);
  EXPECT_EQ(forward % U, 0);
  return {forward / U * (U - 1), backward / U * (U - 1)};
}

/// What members of the ring inside usp hold.
Symbols inside(Symbols s, std::int64_t U) {
  s.H_kv = std::max(s.H_kv, U) / U;
  s.H /= U;
  s.n *= U;
  s.P /= U;
  return s;
}

class Formulae : public testing::Test {
 protected:
  /// `check(symbols, options -> the two passes' bytes)` over dtypes, head groups and rank counts.
  void for_all(const std::function<void(const Symbols&, const Shapes&, const Layout&,
                                        const HeadMasks&, DType wire)>& check) {
    for (const int ranks : {1, 2, 3, 4, 6, 8}) {
      const std::int64_t n = 12;
      const HeadMasks full = Mask::full(n * ranks);
      for (const auto& layout : test::all_layouts(full, 1, ranks)) {
        for (const auto& [heads, kv_heads] :
             {std::pair{2 * ranks, 2 * ranks}, {4 * ranks, ranks}, {2 * ranks, 1}}) {
          for (const DType activation : {DType::float32, DType::bfloat16}) {
            for (const DType wire : {DType::float32, DType::bfloat16}) {
              const Shapes shapes{heads, kv_heads, 8, 4, activation};
              const Symbols symbols{n,
                                    ranks,
                                    heads,
                                    kv_heads,
                                    8,
                                    4,
                                    runtime::size_bytes(activation),
                                    runtime::size_bytes(wire)};
              SCOPED_TRACE(runtime::concat("P=", ranks, " heads ", heads, "/", kv_heads, " e=",
                                           symbols.e, " a=", symbols.a, " ", name(layout.kind())));
              check(symbols, shapes, layout, full, wire);
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
};

TEST_F(Formulae, DoubleRingByLinkClass) {
  // Per rank and pass: I - 1 blocks between nodes, I (L - 1) within; an accumulator likewise.
  for_all([](const Symbols& s, const Shapes& shapes, const Layout& layout, const HeadMasks& masks,
             DType wire) {
    for (const Expression& options :
         test::all_schemes(layout.ranks(), shapes.heads, shapes.kv_heads)) {
      if (options.name != "double_ring") continue;
      const std::int64_t I = *options.integer("outer"), L = *options.integer("inner");
      const std::int64_t backward = options.word("backward", "auto") == "burst"
                                        ? s.bundle() + s.query_sums()
                                        : s.keys() + s.key_sums();
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        const std::int64_t block = direction == Direction::forward ? s.keys() : backward;
        const Sent all = sent(options, masks, layout, shapes, direction, wire);
        for (int rank = 0; rank < layout.ranks(); ++rank) {
          const LinkBytes links = link_bytes(all.to[static_cast<std::size_t>(rank)], rank,
                                             nodes_in_order(layout.ranks(), static_cast<int>(L)));
          EXPECT_EQ(links.between_nodes, (I - 1) * block) << show(options) << " rank " << rank;
          EXPECT_EQ(links.within_nodes, I * (L - 1) * block) << show(options) << " rank " << rank;
        }
      }
    }
  });
}

/// To whom a rank sends how much when every block is needed everywhere.
std::map<int, std::int64_t> peers_of(const Expression& options, const Symbols& s, int rank,
                                     bool backward) {
  std::map<int, std::int64_t> to;
  const auto add = [&](std::int64_t peer, std::int64_t bytes) {
    if (peer != rank && bytes > 0) to[static_cast<int>(peer)] += bytes;
  };
  const auto part = [&](const Pass& pass) { return backward ? pass.backward : pass.forward; };
  // A ring's blocks and their gradients all go to the next member, the last hop home too.
  const auto ring = [&](const std::string& name, const Symbols& of, std::int64_t position,
                        const std::function<std::int64_t(std::int64_t)>& rank_at, std::int64_t I) {
    const std::int64_t with_keys = of.keys() + of.key_sums(),
                       with_queries = of.bundle() + of.query_sums();
    const std::string way =
        options.name == "double_ring" ? options.word("backward", "auto") : "auto";
    const bool automatic = name == "double_ring" && way == "auto",
               burst = name == "burst" || (name == "double_ring" && way == "burst");
    const Pass block{of.keys(), automatic ? std::min(with_keys, with_queries)
                                : burst   ? with_queries
                                          : with_keys};
    const std::int64_t L = of.P / I;
    add(rank_at(position / L * L + (position + 1) % L), I * (L - 1) * part(block));
    add(rank_at((position + L) % of.P), (I - 1) * part(block));
  };
  const auto itself = [](std::int64_t position) { return position; };
  if (options.name == "all_gather" || options.name == "group_cast") {
    for (int peer = 0; peer < s.P; ++peer)
      add(peer, part(ring_bytes(s)) / std::max<std::int64_t>(1, s.P - 1));
  } else if (options.name == "ulysses") {
    for (int peer = 0; peer < s.P; ++peer)
      add(peer, part(exchange_bytes(s, s.P)) / std::max<std::int64_t>(1, s.P - 1));
  } else if (options.name == "usp") {
    const bool heads_inside = options.word("nesting", "heads_inside") == "heads_inside";
    const std::int64_t U = *options.integer("heads"), R = s.P / U;
    const std::string around = options.expression("around").value_or("ring").name;
    const std::int64_t head = heads_inside ? rank % U : rank / R,
                       place = heads_inside ? rank / U : rank % R;
    const auto rank_of = [&](std::int64_t at_head, std::int64_t at_place) {
      return heads_inside ? at_place * U + at_head : at_head * R + at_place;
    };
    for (std::int64_t peer = 0; peer < U; ++peer)
      add(rank_of(peer, place), part(exchange_bytes(s, U)) / std::max<std::int64_t>(1, U - 1));
    std::int64_t I = 1;  // a double ring inside chooses its own: inner up to the root
    for (std::int64_t inner = 1; around == "double_ring" && inner * inner <= R; ++inner) {
      if (R % inner == 0) I = R / inner;
    }
    ring(
        around, inside(s, U), place, [&](std::int64_t position) { return rank_of(head, position); },
        I);
  } else {
    ring(options.name, s, rank, itself,
         options.name == "double_ring" ? *options.integer("outer") : 1);
  }
  return to;
}

TEST_F(Formulae, EveryPeerAndSoEveryLinkClass) {
  // By peer, so by link class wherever the borders of nodes lie.
  std::set<std::string> checked;
  for_all([&](const Symbols& s, const Shapes& shapes, const Layout& layout, const HeadMasks& masks,
              DType wire) {
    for (const Expression& options :
         test::all_schemes(layout.ranks(), shapes.heads, shapes.kv_heads)) {
      if (options.name == "balanced_ring" || options.name == "disaggregated")
        continue;  // they refuse a full mask
      checked.insert(options.name + (options.name == "usp"
                                         ? " " + options.expression("around").value_or("ring").name
                                         : ""));
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        const Sent all = sent(options, masks, layout, shapes, direction, wire);
        for (int rank = 0; rank < layout.ranks(); ++rank) {
          EXPECT_EQ(all.to[static_cast<std::size_t>(rank)],
                    peers_of(options, s, rank, direction == Direction::backward))
              << show(options) << " " << name(direction) << " rank " << rank;
        }
      }
    }
  });
  EXPECT_EQ(checked, (std::set<std::string>{"ring", "burst", "double_ring", "ring_self_attention",
                                            "all_gather", "ulysses", "usp ring", "usp burst",
                                            "usp double_ring", "group_cast"}));
}

TEST(Bytes, FlatRingCrossesANodeBorderWithEveryHop) {
  // What the double ring avoids: the last rank of each node sends all P - 1 blocks to the next.
  const int ranks = 8, per_node = 4;
  const Shapes shapes{4, 4, 8, 8, DType::bfloat16};
  const HeadMasks full = Mask::full(96);
  const Layout layout(LayoutKind::zigzag, 96, 1, ranks);
  const Sent flat = sent("ring", full, layout, shapes, Direction::forward);
  const std::int64_t block = 12 * 4 * 16 * 2;
  for (int rank = 0; rank < ranks; ++rank) {
    const LinkBytes links =
        link_bytes(flat.to[static_cast<std::size_t>(rank)], rank, nodes_in_order(ranks, per_node));
    const bool last = rank % per_node == per_node - 1;
    EXPECT_EQ(links, (last ? LinkBytes{0, 7 * block} : LinkBytes{7 * block, 0})) << rank;
  }
}

TEST(Bytes, BalancedRingSendsKeysNearAndQueriesFar) {
  // Over causal, even P: (3P-2)P/8 blocks of keys, (P-2)P/8 of queries and of their results.
  for (const int ranks : {2, 4, 6, 8, 12}) {
    for (const DType activation : {DType::float32, DType::bfloat16}) {
      for (const DType wire : {DType::float32, DType::bfloat16}) {
        const std::int64_t n = 10, P = ranks;
        const HeadMasks causal = Mask::causal(n * P);
        const Layout layout(LayoutKind::contiguous, n * P, 1, ranks);
        const Shapes shapes{6, 2, 8, 4, activation};
        const Symbols s{
            n, P, 6, 2, 8, 4, runtime::size_bytes(activation), runtime::size_bytes(wire)};
        const std::int64_t near = (3 * P - 2) * P / 8, far = (P - 2) * P / 8;
        EXPECT_EQ(near + far, P * (P - 1) / 2);
        const std::int64_t q_and_partial = s.n * s.H * (s.D * s.e + 4 * s.D_v + 8);
        EXPECT_EQ(sent("balanced_ring", causal, layout, shapes, Direction::forward, wire).total(),
                  near * s.keys() + far * q_and_partial);
        EXPECT_EQ(sent("balanced_ring", causal, layout, shapes, Direction::backward, wire).total(),
                  near * (s.keys() + s.key_sums()) + far * (s.bundle() + s.query_sums()));
      }
    }
  }
}

// ---- the automatic choice
// ------------------------------------------------------------------------------------

std::optional<DType> of_wire(DType wire) {
  return wire == DType::float32 ? std::nullopt : std::optional(wire);
}

TEST(Bytes, AutomaticBackwardIsTheCheaperOfRingAndBurst) {
  const int ranks = 4;
  const HeadMasks full = Mask::full(16 * ranks);
  const Layout layout(LayoutKind::zigzag, 16 * ranks, 1, ranks);
  int burst_chosen = 0, ring_chosen = 0;
  for (const int group : {1, 2, 8}) {
    for (const DType activation : {DType::float32, DType::bfloat16}) {
      for (const DType wire : {DType::float32, DType::bfloat16}) {
        for (const auto& [dim, value_dim] : {std::pair{128, 128}, {64, 128}, {8, 8}}) {
          const Shapes shapes{8, 8 / group, dim, value_dim, activation};
          const auto backward = [&](const Expression& options) {
            return sent(options, full, layout, shapes, Direction::backward, wire);
          };
          const Sent ring = backward("ring"), burst = backward("burst");
          const Sent& cheaper = burst.total() < ring.total() ? burst : ring;
          (burst.total() < ring.total() ? burst_chosen : ring_chosen) += 1;
          EXPECT_EQ(backward(choose_scheme("auto", shapes, of_wire(wire))).to, cheaper.to)
              << "H/H_kv=" << group << " e=" << runtime::size_bytes(activation)
              << " a=" << runtime::size_bytes(wire) << " D=" << dim;
          const Sent double_ring = backward(parse_scheme("double_ring(backward=ring)")),
                     double_burst = backward(parse_scheme("double_ring(backward=burst)"));
          EXPECT_EQ(backward("double_ring").to,
                    (double_burst.total() < double_ring.total() ? double_burst : double_ring).to);
        }
      }
    }
  }
  EXPECT_GT(burst_chosen, 0);
  EXPECT_GT(ring_chosen, 0);
}

TEST(Bytes, BurstWinsOnlyForSmallHeadGroups) {
  // The ratio of burst's to ring's backward at D = 128: (2e + a + 12/D) g / (2e + 2a).
  const HeadMasks full = Mask::full(64);
  const Layout layout(LayoutKind::zigzag, 64, 1, 4);
  for (const int group : {1, 2, 8}) {
    for (const DType wire : {DType::float32, DType::bfloat16}) {
      const Shapes shapes{8, 8 / group, 128, 128, DType::bfloat16};
      const auto total = [&](const char* name) {
        return static_cast<double>(
            sent(name, full, layout, shapes, Direction::backward, wire).total());
      };
      const double e = 2, a = wire == DType::float32 ? 4 : 2;
      EXPECT_NEAR(total("burst") / total("ring"),
                  group * (2 * e + a + 12.0 / 128) / (2 * e + 2 * a), 1e-12);
      EXPECT_EQ(choose_scheme("auto", shapes, of_wire(wire)).text(), group == 1 ? "burst" : "ring");
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel
