// Ring Attention (Liu et al. 2023), any layout. Keys and values travel rank r -> r + 1; in backward
// the gradient accumulator of a block follows one hop behind it. A rank's own contribution to its
// dk, dv stays at home, so an accumulator starts at the first visitor and is home after P - 1 hops.
// A block travels no further than the last rank that sees any of it, and an accumulator returns
// home from there.
//
// Bytes sent per rank, all blocks needed everywhere, X = n * H_kv: forward X (D + D_v) e (P - 1);
// backward the same plus X (D + D_v) a (P - 1), for e bytes an activation and a bytes an
// accumulator element.

#include <algorithm>
#include <memory>

#include "parallel/builder.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {
namespace {

/// Who sees what: the part of the ring that all ranks agree on.
class RingPlan {
 public:
  RingPlan(const attention::Mask& mask, const Layout& layout) : ranks_(layout.ranks()) {
    const auto ranks = static_cast<std::size_t>(ranks_);
    first_.assign(ranks, ranks_);
    last_.assign(ranks, 0);
    for (int block = 0; block < ranks_; ++block) {
      for (int hop = 1; hop < ranks_; ++hop) {
        if (!attention::any_visible(mask, layout.runs(wrap(block + hop)), layout.runs(block)))
          continue;
        auto& first = first_[static_cast<std::size_t>(block)];
        first = std::min(first, hop);
        last_[static_cast<std::size_t>(block)] = hop;
      }
    }
  }
  int wrap(int rank) const { return ((rank % ranks_) + ranks_) % ranks_; }
  /// The block is at rank block + hop after `hop` hops; it travels up to hop `last`.
  int last(int block) const { return last_[static_cast<std::size_t>(block)]; }
  bool travels(int block, int hop) const { return hop <= last(block); }
  /// A gradient accumulator of the block exists once the visitor of `hop` is done.
  bool accumulated(int block, int hop) const {
    return first_[static_cast<std::size_t>(block)] <= hop && travels(block, hop);
  }

 private:
  int ranks_;
  std::vector<int> first_, last_;  // first and last hop at which a block is seen, per block
};

/// Two buffers in turn, as long as the longest block; hop h's block of `rows` rows lies in buffer h
/// % 2.
class Alternating {
 public:
  Alternating(Builder& builder, const std::string& name, SlotKind kind, std::int64_t rows,
              int heads)
      : views_{builder.scratch(name + "0", kind, rows, heads),
               builder.scratch(name + "1", kind, rows, heads)} {}
  View at(int hop, std::int64_t rows) const {
    View view = views_[static_cast<std::size_t>(hop % 2)];
    view.row_end = rows;
    return view;
  }

 private:
  std::array<View, 2> views_;
};

/// What one rank's program is built from.
class RingRank {
 public:
  RingRank(const SchemeInputs& inputs, const RingPlan& plan, int rank)
      : inputs_(inputs),
        plan_(plan),
        rank_(rank),
        ranks_(inputs.layout.ranks()),
        builder_(rank, 1) {
    for (int r = 0; r < ranks_; ++r) {
      if (r != rank) longest_ = std::max(longest_, inputs.layout.rows(r));
    }
  }

  Program forward() && {
    const View q = builder_.add_slot(input_slot("q", SlotKind::q, inputs_, rank_));
    own_kv_ = builder_.add_slot(input_slot("kv", SlotKind::kv, inputs_, rank_));
    const View out = builder_.add_slot(output_slot("out", SlotKind::partial, inputs_, rank_));
    make_kv_buffers();
    for (int hop = 0; hop < ranks_; ++hop) {
      pass_kv(hop);
      builder_.set_phase(1);
      builder_.attend(q, kv_at(hop), bands(hop), out, hop == 0 ? Mode::write : Mode::add);
    }
    return std::move(builder_).finish();
  }

  Program backward() && {
    const View q = builder_.add_slot(input_slot("q_bundle", SlotKind::q_bundle, inputs_, rank_));
    own_kv_ = builder_.add_slot(input_slot("kv", SlotKind::kv, inputs_, rank_));
    const View dq = builder_.add_slot(output_slot("dq", SlotKind::dq, inputs_, rank_));
    const View dkv = builder_.add_slot(output_slot("dkv", SlotKind::dkv, inputs_, rank_));
    make_kv_buffers();
    if (ranks_ > 1) {
      const int heads = inputs_.shapes.kv_heads;
      const std::int64_t own_rows = inputs_.layout.rows(rank_);
      part_.emplace(builder_, "dkv_part", SlotKind::dkv, std::max(longest_, own_rows), heads);
      arrived_.emplace(builder_, "dkv_arrived", SlotKind::dkv, longest_, heads);
      // After the last hop a part buffer is free; a block that turns back earlier comes home to its
      // own.
      home_ = plan_.last(rank_) == ranks_ - 1
                  ? part_->at(ranks_, own_rows)
                  : builder_.scratch("dkv_home", SlotKind::dkv, own_rows, heads);
    }
    for (int hop = 0; hop < ranks_; ++hop) {
      pass_kv(hop);
      builder_.set_phase(1);
      if (hop == 0) {
        builder_.attend_backward(q, own_kv_, bands(0), dq, Mode::write, dkv, Mode::write);
      } else {
        visit(hop, q, dq);
      }
    }
    if (plan_.last(rank_) > 0) builder_.accumulate(home_, dkv);
    return std::move(builder_).finish();
  }

 private:
  int block_at(int hop) const { return plan_.wrap(rank_ - hop); }
  std::int64_t rows_at(int hop) const { return inputs_.layout.rows(block_at(hop)); }
  View kv_at(int hop) const { return hop == 0 ? own_kv_ : kv_->at(hop, rows_at(hop)); }
  std::vector<Slice> bands(int hop) const {
    return attention::cut(inputs_.mask, inputs_.layout.runs(rank_),
                          inputs_.layout.runs(block_at(hop)));
  }

  void make_kv_buffers() {
    if (ranks_ > 1) kv_.emplace(builder_, "kv", SlotKind::kv, longest_, inputs_.shapes.kv_heads);
  }

  /// Sends the block of this hop on and receives the next one, before the compute that hides it.
  void pass_kv(int hop) {
    if (hop + 1 >= ranks_) return;
    std::vector<Message> sends, receives;
    if (plan_.travels(block_at(hop), hop + 1))
      sends.push_back({plan_.wrap(rank_ + 1), {kv_at(hop)}, block_at(hop)});
    if (plan_.travels(block_at(hop + 1), hop + 1)) {
      receives.push_back({plan_.wrap(rank_ - 1), {kv_at(hop + 1)}, block_at(hop + 1)});
    }
    builder_.transfer(0, std::move(sends), std::move(receives));
  }

  /// Backward of the block that is here at this hop: adds to its accumulator and passes that on, or
  /// home.
  void visit(int hop, const View& q, const View& dq) {
    const int block = block_at(hop);
    const bool arrives = plan_.travels(block, hop) && plan_.accumulated(block, hop - 1);
    View accumulator = arrived_->at(hop, rows_at(hop));
    std::vector<Slice> visible = bands(hop);
    if (!visible.empty()) {
      const View part = part_->at(hop, rows_at(hop));
      builder_.attend_backward(q, kv_at(hop), std::move(visible), dq, Mode::add, part, Mode::write);
      if (arrives) builder_.accumulate(accumulator, part);
      accumulator = part;
    }
    std::vector<Message> sends, receives;
    if (plan_.accumulated(block, hop)) {
      const int to = hop < plan_.last(block) ? plan_.wrap(rank_ + 1) : block;
      sends.push_back(gradient(to, accumulator, block));
    }
    const int next = block_at(hop + 1);  // what rank - 1 passes on after this hop
    if (hop + 1 < ranks_ && plan_.travels(next, hop + 1) && plan_.accumulated(next, hop)) {
      receives.push_back(
          gradient(plan_.wrap(rank_ - 1), arrived_->at(hop + 1, rows_at(hop + 1)), next));
    }
    if (hop == plan_.last(rank_))
      receives.push_back(gradient(plan_.wrap(rank_ + hop), home_, rank_));
    builder_.transfer(0, std::move(sends), std::move(receives));
  }

  Message gradient(int peer, const View& view, int block) const {
    return {peer, {view}, ranks_ + block, inputs_.wire_dtype};
  }

  const SchemeInputs& inputs_;
  const RingPlan& plan_;
  const int rank_, ranks_;
  Builder builder_;
  std::int64_t longest_ = 0;  // rows of the longest block of another rank
  View own_kv_, home_;
  std::optional<Alternating> kv_, part_, arrived_;
};

}  // namespace

ProgramGenerator prepare_ring(const SchemeInputs& inputs) {
  auto plan = std::make_shared<RingPlan>(inputs.mask, inputs.layout);
  return [&inputs, plan](int rank) {
    RingRank ring(inputs, *plan, rank);
    return inputs.direction == Direction::forward ? std::move(ring).forward()
                                                  : std::move(ring).backward();
  };
}

}  // namespace longhaul::parallel
