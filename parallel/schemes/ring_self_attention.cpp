// Ring Self-Attention (Li et al. 2021): K's whole ring, then V's. Where the paper keeps all scores,
// this keeps the gathered K, so a rank's memory grows with the whole sequence; a yardstick for the
// others rather than their rival. In backward the accumulators of dK and dV follow V.
//
// Bytes as ring's: forward X (D + D_v) e (P - 1), backward X (D + D_v) (e + a) (P - 1).

#include <memory>

#include "parallel/schemes/level_ring.h"

namespace longhaul::parallel {
namespace {

ProgramGenerator prepare_ring_self_attention(const SchemeInputs& inputs) {
  struct Shared {
    Members members;
    RingPlan plan;
    AttentionRecords records;
    std::vector<int> ranks;
  };
  Members members(inputs);
  RingPlan plan(members, {{members.size(), 0}}, Circulating::values);
  auto shared = std::make_shared<Shared>(
      Shared{std::move(members), std::move(plan), AttentionRecords(inputs.shapes), {}});
  for (int rank = 0; rank < shared->members.size(); ++rank) shared->ranks.push_back(rank);
  return [&inputs, shared](int rank) {
    Builder builder(rank, 1);
    const auto input = [&](const char* name, const Record& record) {
      return builder.add_slot(input_slot(name, record, inputs, rank));
    };
    const auto output = [&](const char* name, const Record& record) {
      return builder.add_slot(output_slot(name, record, inputs, rank));
    };
    const AttentionRecords& records = shared->records;
    RingMember ring{builder, shared->members,   shared->plan, records, rank, shared->ranks,
                    "",      inputs.wire_dtype, inputs.lends};
    const View k = input("k", records.k), v = input("v", records.v);
    ring.keys = gather_keys(ring, k);
    if (inputs.direction == Direction::forward) {
      ring_forward(ring, {input("q", records.q), v, output("out", records.partial)});
    } else {
      ring_backward(ring, {input("q_bundle", records.q_bundle), v, output("dq", records.dq),
                           output("dkv", records.dkv)});
    }
    return std::move(builder).finish();
  };
}

}  // namespace

const Scheme ring_self_attention_scheme{.name = "ring_self_attention",
                                        .prepare = prepare_ring_self_attention};

}  // namespace longhaul::parallel
