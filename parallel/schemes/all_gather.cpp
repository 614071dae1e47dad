// All-gather of keys and values, one key/value head at a time, as Llama 3 trains (Grattafiori et
// al. 2024): the next head is gathered while this one is attended. Backward gathers again, and
// sends each rank its part of dK, dV, which the owner adds to its own in rank order. Simple, and
// indifferent to the mask: everything goes everywhere.
//
// Bytes sent per rank: forward X (D + D_v) e (P - 1), backward X (D + D_v) (e + a) (P - 1).

#include <memory>

#include "parallel/schemes/arrivals.h"
#include "parallel/schemes/buffers.h"
#include "parallel/schemes/members.h"

namespace longhaul::parallel {
namespace {

class GatheringRank {
 public:
  GatheringRank(const SchemeInputs& inputs, const Members& members, int rank)
      : inputs_(inputs),
        members_(members),
        rank_(rank),
        builder_(rank, 1),
        records_(inputs.shapes),
        group_(inputs.shapes.heads / inputs.shapes.kv_heads) {
    for (int other = 0; other < members.size(); ++other) {
      first_row_.push_back(others_rows_);
      if (other == rank) continue;
      others_.push_back(other);
      others_rows_ += members.rows(other);
    }
    own_bands_ = members.bands(rank, rank);
    other_bands_ = members.bands(rank, attention::TokenIndex(joined_runs(inputs.layout, others_)));
  }

  Program forward() && {
    const ForwardViews own = add_forward_slots(builder_, inputs_, rank_);
    Buffers gathered(builder_, "gathered", records_.kv, others_rows_, 1);
    gather(own.kv, gathered, 0);
    for (int head = 0; head < inputs_.shapes.kv_heads; ++head) {
      gather(own.kv, gathered, head + 1);
      builder_.set_phase(1);
      const View q = queries(own.q, head), out = queries(own.out, head);
      builder_.attend(q, keys(own.kv, head), bands(own_bands_, head), out, Mode::write);
      if (others_.empty()) continue;
      builder_.attend(q, gathered.at(head, others_rows_), bands(other_bands_, head), out,
                      Mode::add);
    }
    return std::move(builder_).finish();
  }

  Program backward() && {
    const BackwardViews own = add_backward_slots(builder_, inputs_, rank_);
    Buffers gathered(builder_, "gathered", records_.kv, others_rows_, 1);
    Buffers parts(builder_, "parts", records_.dkv, others_rows_, 1);
    Arrivals arrivals;
    gather(own.kv, gathered, 0);
    for (int head = 0; head < inputs_.shapes.kv_heads; ++head) {
      gather(own.kv, gathered, head + 1);
      builder_.set_phase(1);
      const View q = queries(own.q_bundle, head), dq = queries(own.dq, head),
                 dkv = keys(own.dkv, head);
      builder_.attend_backward(q, keys(own.kv, head), bands(own_bands_, head), dq, Mode::write, dkv,
                               Mode::write);
      if (others_.empty()) continue;
      const View part = parts.at(head, others_rows_);
      builder_.attend_backward(q, gathered.at(head, others_rows_), bands(other_bands_, head), dq,
                               Mode::add, part, Mode::write);
      arrivals.add_all(builder_);
      reduce(part, dkv, head, arrivals);
    }
    arrivals.add_all(builder_);
    return std::move(builder_).finish();
  }

 private:
  View queries(const View& view, int kv_head) const {
    return heads_of(view, kv_head * group_, (kv_head + 1) * group_);
  }
  static View keys(const View& view, int kv_head) { return heads_of(view, kv_head, kv_head + 1); }
  Bands bands(const Bands& all, int kv_head) const {
    return heads_of(all, kv_head * group_, (kv_head + 1) * group_);
  }
  View rows_of_rank(const View& others, int rank) const {
    const std::int64_t first = first_row_[static_cast<std::size_t>(rank)];
    return rows_of(others, first, first + members_.rows(rank));
  }

  void gather(const View& own_kv, Buffers& gathered, int head) {
    if (head >= inputs_.shapes.kv_heads || others_.empty()) return;
    std::vector<Message> sends, receives;
    for (const int other : others_) {
      sends.push_back({other, {keys(own_kv, head)}, head});
      receives.push_back({other, {rows_of_rank(gathered.at(head, others_rows_), other)}, head});
    }
    builder_.transfer(0, std::move(sends), std::move(receives),
                      collective(TransferKind::all_gather));
  }

  /// Every rank's part of the gradient goes to it; the parts of this rank's arrive.
  void reduce(const View& part, const View& dkv, int head, Arrivals& arrivals) {
    const std::int64_t rows = members_.rows(rank_);
    if (arrived_.empty()) {
      for (const int other : others_)
        arrived_.emplace_back(builder_, runtime::concat("from_", other, "_"), records_.dkv, rows,
                              1);
    }
    std::vector<Message> sends, receives;
    for (std::size_t i = 0; i < others_.size(); ++i) {
      const int tag = inputs_.shapes.kv_heads + head;
      const View arrived = arrived_[i].at(head, rows);
      sends.push_back({others_[i], {rows_of_rank(part, others_[i])}, tag, inputs_.wire_dtype});
      receives.push_back({others_[i], {arrived}, tag, inputs_.wire_dtype});
      if (rows > 0) arrivals.expect(arrived, dkv);
    }
    builder_.transfer(0, std::move(sends), std::move(receives),
                      collective(TransferKind::all_to_all));
  }
  /// Where all ranks have as many rows.
  TransferKind collective(TransferKind kind) const {
    for (int rank = 0; rank < members_.size(); ++rank) {
      if (members_.rows(rank) != members_.rows(rank_)) return TransferKind::none;
    }
    return kind;
  }

  const SchemeInputs& inputs_;
  const Members& members_;
  const int rank_;
  Builder builder_;
  const AttentionRecords records_;
  const int group_;  // query heads a key/value head
  std::vector<int> others_;
  std::vector<std::int64_t> first_row_;  // of a rank in a view of the others' rows
  std::int64_t others_rows_ = 0;
  Bands own_bands_, other_bands_;
  std::vector<Buffers> arrived_;
};

ProgramGenerator prepare_all_gather(const SchemeInputs& inputs) {
  auto members = std::make_shared<Members>(inputs);
  return [&inputs, members](int rank) {
    GatheringRank gathering(inputs, *members, rank);
    return inputs.direction == Direction::forward ? std::move(gathering).forward()
                                                  : std::move(gathering).backward();
  };
}

}  // namespace

const Scheme all_gather_scheme{.name = "all_gather", .prepare = prepare_all_gather};

}  // namespace longhaul::parallel
