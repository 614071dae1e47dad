// Balanced ring (DistFlashAttn, Li et al. 2024; LightSeq): over a contiguous layout and a mask in
// which no query sees a later key, rank r has r + 1 blocks to attend, so at step t ranks r < t
// would idle. They attend for the others instead: rank r takes queries of rank r + P - t over its
// own keys and returns the partial. P/2 steps after the local one, for an efficiency of P / (P + 1)
// at even P. Keys come straight from their owner, not hop by hop.
//
// With every block needed, of the pairs (query rank, key rank) the key's block is sent at distances
// up to P/2, the queries and their partial beyond: (3P-2)P/8 and (P-2)P/8 pairs for even P.

#include <memory>

#include "parallel/schemes/arrivals.h"
#include "parallel/schemes/buffers.h"
#include "parallel/schemes/members.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

/// Both kinds of step at distance t: a key block fetched from rank - t, or queries helped from rank
/// + P - t. A rank does one of the two.
class BalancedRank {
 public:
  BalancedRank(const SchemeInputs& inputs, const Members& members, int rank)
      : inputs_(inputs),
        members_(members),
        rank_(rank),
        ranks_(members.size()),
        builder_(rank, 1),
        records_(inputs.shapes),
        longest_(members.longest(rank)) {}

  Program forward() && {
    const ForwardViews own = add_forward_slots(builder_, inputs_, rank_);
    Buffers kv(builder_, "kv", records_.kv, longest_, inputs_.shapes.kv_heads);
    Buffers q(builder_, "q_helped", records_.q, longest_, inputs_.shapes.heads);
    Buffers out(builder_, "out_helped", records_.partial, longest_, inputs_.shapes.heads);
    Buffers back(builder_, "out_arrived", records_.partial, own.q.rows(), inputs_.shapes.heads);
    Arrivals arrivals;
    for (int step = 0; step <= ranks_ / 2; ++step) {
      fetch(own.q, own.kv, q, kv, step + 1);
      builder_.set_phase(1);
      if (step == 0) {
        builder_.attend(own.q, own.kv, members_.bands(rank_, rank_), own.out, Mode::write);
        continue;
      }
      if (attends(step)) {
        const int from = rank_ - step;
        builder_.attend(own.q, kv.at(step, members_.rows(from)), members_.bands(rank_, from),
                        own.out, Mode::add);
      }
      if (helps(step)) {
        const int whom = rank_ + ranks_ - step;
        const std::int64_t rows = members_.rows(whom);
        builder_.attend(q.at(step, rows), own.kv, members_.bands(whom, rank_), out.at(step, rows),
                        Mode::write);
      }
      arrivals.add_all(builder_);
      std::vector<Message> sends, receives;
      if (helps(step)) {
        const int whom = rank_ + ranks_ - step;
        sends.push_back({whom, {out.at(step, members_.rows(whom))}, ranks_ + step});
      }
      if (is_helped(step)) {
        const View arrived = back.at(step, own.q.rows());
        receives.push_back({helper(step), {arrived}, ranks_ + step});
        arrivals.expect(arrived, own.out);
      }
      builder_.transfer(0, std::move(sends), std::move(receives));
    }
    arrivals.add_all(builder_);
    return std::move(builder_).finish();
  }

  Program backward() && {
    const BackwardViews own = add_backward_slots(builder_, inputs_, rank_);
    const auto [heads, kv_heads] = std::pair(inputs_.shapes.heads, inputs_.shapes.kv_heads);
    Buffers kv(builder_, "kv", records_.kv, longest_, kv_heads);
    Buffers dkv(builder_, "dkv_part", records_.dkv, longest_, kv_heads);
    Buffers dkv_back(builder_, "dkv_arrived", records_.dkv, own.kv.rows(), kv_heads);
    Buffers q(builder_, "q_helped", records_.q_bundle, longest_, heads);
    Buffers dq(builder_, "dq_helped", records_.dq, longest_, heads);
    Buffers dq_back(builder_, "dq_arrived", records_.dq, own.q_bundle.rows(), heads);
    Arrivals arrivals;
    for (int step = 0; step <= ranks_ / 2; ++step) {
      fetch(own.q_bundle, own.kv, q, kv, step + 1);
      builder_.set_phase(1);
      if (step == 0) {
        builder_.attend_backward(own.q_bundle, own.kv, members_.bands(rank_, rank_), own.dq,
                                 Mode::write, own.dkv, Mode::write);
        continue;
      }
      std::vector<Message> sends, receives;
      const auto send = [&](int peer, const View& view) {
        sends.push_back({peer, {view}, ranks_ + step, inputs_.wire_dtype});
      };
      const auto receive = [&](int peer, const View& arrived, const View& into) {
        receives.push_back({peer, {arrived}, ranks_ + step, inputs_.wire_dtype});
        arrivals.expect(arrived, into);
      };
      if (attends(step)) {
        const int from = rank_ - step;
        const View part = dkv.at(step, members_.rows(from));
        builder_.attend_backward(own.q_bundle, kv.at(step, part.rows()),
                                 members_.bands(rank_, from), own.dq, Mode::add, part, Mode::write);
        send(from, part);
      }
      if (helps(step)) {
        const int whom = rank_ + ranks_ - step;
        const View part = dq.at(step, members_.rows(whom));
        builder_.attend_backward(q.at(step, part.rows()), own.kv, members_.bands(whom, rank_), part,
                                 Mode::write, own.dkv, Mode::add);
        send(whom, part);
      }
      arrivals.add_all(builder_);
      if (is_attended(step)) receive(rank_ + step, dkv_back.at(step, own.kv.rows()), own.dkv);
      if (is_helped(step)) receive(helper(step), dq_back.at(step, own.q_bundle.rows()), own.dq);
      builder_.transfer(0, std::move(sends), std::move(receives));
    }
    arrivals.add_all(builder_);
    return std::move(builder_).finish();
  }

 private:
  bool visible(int query, int key) const {
    return key >= 0 && query < ranks_ && members_.visible(query, key);
  }
  /// At a distance of exactly P/2 nobody needs help: the queries' rank has time.
  bool helping(int step) const { return step < ranks_ - step; }
  /// This rank fetches keys from rank - step.
  bool attends(int step) const { return step <= ranks_ / 2 && visible(rank_, rank_ - step); }
  /// Rank + step fetches this rank's keys.
  bool is_attended(int step) const { return step <= ranks_ / 2 && visible(rank_ + step, rank_); }
  /// This rank attends for the queries of rank + P - step.
  bool helps(int step) const {
    return step <= ranks_ / 2 && helping(step) && visible(rank_ + ranks_ - step, rank_);
  }
  int helper(int step) const { return rank_ - (ranks_ - step); }
  bool is_helped(int step) const {
    return step <= ranks_ / 2 && helping(step) && visible(rank_, helper(step));
  }

  /// The transfer of a step, issued before the compute of the step before.
  void fetch(const View& own_q, const View& own_kv, Buffers& q, Buffers& kv, int step) {
    std::vector<Message> sends, receives;
    if (is_attended(step)) sends.push_back({rank_ + step, {own_kv}, step});
    if (is_helped(step)) sends.push_back({helper(step), {own_q}, step});
    if (attends(step)) {
      const int from = rank_ - step;
      receives.push_back({from, {kv.at(step, members_.rows(from))}, step});
    }
    if (helps(step)) {
      const int whom = rank_ + ranks_ - step;
      receives.push_back({whom, {q.at(step, members_.rows(whom))}, step});
    }
    builder_.transfer(0, std::move(sends), std::move(receives));
  }

  const SchemeInputs& inputs_;
  const Members& members_;
  const int rank_, ranks_;
  Builder builder_;
  const AttentionRecords records_;
  const std::int64_t longest_;
};

std::optional<Refusal> refuse_balanced_ring(const Combination& c) {
  if (c.layout != LayoutKind::contiguous) {
    Refusal refusal{runtime::concat("balanced_ring balances a contiguous layout itself, so layout ",
                                    name(c.layout), " does not suit it"),
                    {}};
    if (c.causal) refusal.nearest.emplace_back(c).layout = LayoutKind::contiguous;
    refusal.nearest.push_back(under_scheme(c, "ring"));
    return refusal;
  }
  if (!c.causal) {
    return Refusal{"balanced_ring needs a mask in which no query sees a later key",
                   {under_scheme(c, "ring")}};
  }
  return {};
}

ProgramGenerator prepare_balanced_ring(const SchemeInputs& inputs) {
  auto members = std::make_shared<Members>(inputs);
  return [&inputs, members](int rank) {
    BalancedRank balanced(inputs, *members, rank);
    return inputs.direction == Direction::forward ? std::move(balanced).forward()
                                                  : std::move(balanced).backward();
  };
}

}  // namespace

const Scheme balanced_ring_scheme{
    .name = "balanced_ring",
    .prepare = prepare_balanced_ring,
    .refuse = refuse_balanced_ring,
    .legality =
        "layout contiguous; masks in which no query sees a later key, as causal and "
        "documents, and slices that are so"};

}  // namespace longhaul::parallel
