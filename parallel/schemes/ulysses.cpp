// DeepSpeed-Ulysses (Jacobs et al. 2023) and USP (Fang & Zhao 2024). P = U x R: an all-to-all among
// U ranks trades heads for tokens, a ring-family scheme over R members attends (R = 1: locally),
// and the inverse all-to-all brings results home. Where U exceeds H_kv each key/value head goes to
// U / H_kv ranks, whose gradients the owner sums in rank order.
//
// Bytes sent per rank by the all-to-alls, with n local tokens, H' = max(H_kv, U) key/value heads:
// forward n (U-1)/U (H (D e + 4 D_v + 8) + H' (D + D_v) e), since partial results travel unrounded;
// backward n (U-1)/U (H ((D + D_v) e + 12 + D a) + H' (D + D_v) (e + a)). The ring's are those of
// its scheme for n U rows, H / U query heads and H' / U key/value heads.

#include "parallel/schemes/ulysses.h"

#include <memory>

#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::parallel {

bool heads_divide(int heads, int kv_heads, int degree) {
  return heads % degree == 0 && (kv_heads % degree == 0 || degree % kv_heads == 0);
}

namespace {

class HeadExchange {
 public:
  HeadExchange(const SchemeInputs& inputs, const HeadGrid& grid, const RingKind& kind)
      : inputs_(inputs),
        grid_(grid),
        channels_(static_cast<int>(kind.levels.size())),
        q_heads_(inputs.shapes.heads / grid.heads),
        kv_heads_(std::max(1, inputs.shapes.kv_heads / grid.heads)),
        records_(inputs.shapes) {
    std::vector<std::vector<Run>> runs;
    for (int ring = 0; ring < grid.rings; ++ring)
      runs.push_back(joined_runs(inputs.layout, peers(ring)));
    const bool forward = inputs.direction == Direction::forward;
    for (int head = 0; head < grid.heads; ++head) {
      // Heads of one mask share a plan.
      if (head == 0 || !inputs.masks.shared()) {
        auto members =
            std::make_shared<Members>(inputs.masks, runs, head * q_heads_, (head + 1) * q_heads_);
        auto plan = std::make_shared<RingPlan>(*members, kind.levels,
                                               forward ? Circulating::keys : kind.backward);
        rings_.push_back({std::move(members), std::move(plan)});
      } else {
        rings_.push_back(rings_[0]);
      }
    }
  }

  Program generate(int rank) const {
    Builder builder(rank, channels_);
    if (inputs_.direction == Direction::forward) {
      forward(builder, rank);
    } else {
      backward(builder, rank);
    }
    return std::move(builder).finish();
  }

 private:
  struct Ring {
    std::shared_ptr<const Members> members;
    std::shared_ptr<const RingPlan> plan;
  };

  /// The ranks that exchange heads at a ring position.
  std::vector<int> peers(int ring) const {
    std::vector<int> ranks;
    for (int head = 0; head < grid_.heads; ++head) ranks.push_back(grid_.rank(ring, head));
    return ranks;
  }
  int kv_head_of(int head) const { return head * inputs_.shapes.kv_heads / grid_.heads; }
  View share(const View& view, int head, bool key_side) const {
    const int first = key_side ? kv_head_of(head) : head * q_heads_;
    return heads_of(view, first, first + (key_side ? kv_heads_ : q_heads_));
  }
  View exchanged(Builder& builder, const char* name, const Record& record,
                 std::int64_t rows) const {
    return builder.scratch(name, record, rows, record.side == Side::key ? kv_heads_ : q_heads_);
  }
  /// The rows of peer number `head` in a view that holds all peers'.
  View part(const View& view, int ring, int head) const {
    std::int64_t begin = 0;
    for (int before = 0; before < head; ++before)
      begin += inputs_.layout.rows(grid_.rank(ring, before));
    return rows_of(view, begin, begin + inputs_.layout.rows(grid_.rank(ring, head)));
  }

  /// Own rows of all heads -> all peers' rows of own heads.
  void scatter_heads(Builder& builder, int rank, const View& q, const View& kv, const View& all_q,
                     const View& all_kv) const {
    std::vector<Message> sends, receives;
    const int ring = grid_.ring_of(rank);
    for (int head = 0; head < grid_.heads; ++head) {
      const int peer = grid_.rank(ring, head);
      sends.push_back({peer, {share(q, head, false), share(kv, head, true)}});
      receives.push_back({peer, {part(all_q, ring, head), part(all_kv, ring, head)}});
    }
    builder.transfer(0, std::move(sends), std::move(receives), collective(rank));
  }

  /// Where all that exchange heads with the rank have as many rows.
  TransferKind collective(int rank) const {
    for (const int peer : peers(grid_.ring_of(rank))) {
      if (inputs_.layout.rows(peer) != inputs_.layout.rows(rank)) return TransferKind::none;
    }
    return TransferKind::all_to_all;
  }

  RingMember ring_member(Builder& builder, int rank, std::vector<int>& ranks) const {
    const int head = grid_.head_of(rank);
    for (int ring = 0; ring < grid_.rings; ++ring) ranks.push_back(grid_.rank(ring, head));
    const Ring& ring = rings_[static_cast<std::size_t>(head)];
    return {builder, *ring.members, *ring.plan,         records_,     grid_.ring_of(rank),
            ranks,   "ring.",       inputs_.wire_dtype, inputs_.lends};
  }

  void forward(Builder& builder, int rank) const {
    const ForwardViews own = add_forward_slots(builder, inputs_, rank);
    std::vector<int> ranks;
    const RingMember ring = ring_member(builder, rank, ranks);
    const std::int64_t rows = ring.members.rows(ring.self);
    const ForwardViews all{exchanged(builder, "all_q", records_.q, rows),
                           exchanged(builder, "all_kv", records_.kv, rows),
                           exchanged(builder, "all_out", records_.partial, rows)};
    scatter_heads(builder, rank, own.q, own.kv, all.q, all.kv);
    ring_forward(ring, all);
    std::vector<Message> sends, receives;
    for (int head = 0; head < grid_.heads; ++head) {
      const int peer = grid_.rank(ring.self, head);
      sends.push_back({peer, {part(all.out, ring.self, head)}});
      receives.push_back({peer, {share(own.out, head, false)}});
    }
    builder.transfer(0, std::move(sends), std::move(receives), collective(rank));
  }

  void backward(Builder& builder, int rank) const {
    const BackwardViews own = add_backward_slots(builder, inputs_, rank);
    std::vector<int> ranks;
    const RingMember ring = ring_member(builder, rank, ranks);
    const std::int64_t rows = ring.members.rows(ring.self);
    const BackwardViews all{exchanged(builder, "all_q_bundle", records_.q_bundle, rows),
                            exchanged(builder, "all_kv", records_.kv, rows),
                            exchanged(builder, "all_dq", records_.dq, rows),
                            exchanged(builder, "all_dkv", records_.dkv, rows)};
    scatter_heads(builder, rank, own.q_bundle, own.kv, all.q_bundle, all.kv);
    ring_backward(ring, all);
    std::vector<Message> sends, receives;
    std::vector<std::pair<View, View>> replicas;  // what arrived, and where it is added
    for (int head = 0; head < grid_.heads; ++head) {
      const int peer = grid_.rank(ring.self, head);
      // The first of those that share a key/value head writes its gradient, the others add.
      const bool first = head == 0 || kv_head_of(head) != kv_head_of(head - 1);
      View dkv = share(own.dkv, head, true);
      if (!first) {
        const View arrived =
            builder.scratch(runtime::concat("dkv_of_", head), records_.dkv, dkv.rows(), kv_heads_);
        replicas.emplace_back(arrived, dkv);
        dkv = arrived;
      }
      // What stays on this rank is not rounded.
      const auto wire_dtype = peer == rank ? std::nullopt : inputs_.wire_dtype;
      sends.push_back(
          {peer, {part(all.dq, ring.self, head), part(all.dkv, ring.self, head)}, 0, wire_dtype});
      receives.push_back({peer, {share(own.dq, head, false), dkv}, 0, wire_dtype});
    }
    builder.transfer(0, std::move(sends), std::move(receives), collective(rank));
    for (const auto& [arrived, into] : replicas) builder.accumulate(arrived, into);
  }

  const SchemeInputs& inputs_;
  const HeadGrid grid_;
  const int channels_, q_heads_, kv_heads_;
  const AttentionRecords records_;
  std::vector<Ring> rings_;  // by head position
};

}  // namespace

ProgramGenerator prepare_exchange(const SchemeInputs& inputs, const HeadGrid& grid,
                                  const Expression& ring) {
  // The members of the ring hold fewer heads, by the same factor unless key/value heads are
  // replicated.
  Shapes shapes = inputs.shapes;
  shapes.heads /= grid.heads;
  shapes.kv_heads = std::max(1, shapes.kv_heads / grid.heads);
  const RingKind kind =
      scheme_from_name(ring.name).ring(ring, grid.rings, shapes, inputs.wire_dtype);
  auto exchange = std::make_shared<HeadExchange>(inputs, grid, kind);
  return [exchange](int rank) { return exchange->generate(rank); };
}

namespace {

std::optional<Refusal> refuse_ulysses(const Combination& c) {
  if (heads_divide(c.heads, c.kv_heads, c.ranks)) return {};
  Combination fewer = c;
  while (!heads_divide(c.heads, c.kv_heads, fewer.ranks)) --fewer.ranks;  // one always suits
  return Refusal{runtime::concat(runtime::counted(c.ranks, "rank"), " cannot share ",
                                 runtime::counted(c.heads, "query head"), " and ",
                                 runtime::counted(c.kv_heads, "key/value head"),
                                 ": the query heads must be a multiple of the "
                                 "ranks, and of key/value heads and ranks one of the other"),
                 {fewer, under_scheme(c, "usp"), under_scheme(c, "ring")}};
}

ProgramGenerator prepare_ulysses(const SchemeInputs& inputs) {
  return prepare_exchange(inputs, {inputs.layout.ranks(), 1}, "ring");
}

}  // namespace

const Scheme ulysses_scheme{
    .name = "ulysses",
    .prepare = prepare_ulysses,
    .refuse = refuse_ulysses,
    .legality =
        "every mask and layout; H a multiple of the ranks, H_kv and the ranks one of the other"};

}  // namespace longhaul::parallel
