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
    std::vector<int> ranks;
  };
  Members members(inputs);
  RingPlan plan(members, {{members.size(), 0}}, Circulating::values);
  auto shared = std::make_shared<Shared>(Shared{std::move(members), std::move(plan), {}});
  for (int rank = 0; rank < shared->members.size(); ++rank) shared->ranks.push_back(rank);
  return [&inputs, shared](int rank) {
    Builder builder(rank, 1);
    const auto input = [&](const char* name, SlotKind kind) {
      return builder.add_slot(input_slot(name, kind, inputs, rank));
    };
    const auto output = [&](const char* name, SlotKind kind) {
      return builder.add_slot(output_slot(name, kind, inputs, rank));
    };
    RingMember ring{builder, shared->members,  shared->plan, rank, shared->ranks,
                    "",      inputs.wire_dtype};
    const View k = input("k", SlotKind::k), v = input("v", SlotKind::v);
    ring.keys = gather_keys(ring, k);
    if (inputs.direction == Direction::forward) {
      ring_forward(ring, {input("q", SlotKind::q), v, output("out", SlotKind::partial)});
    } else {
      ring_backward(ring, {input("q_bundle", SlotKind::q_bundle), v, output("dq", SlotKind::dq),
                           output("dkv", SlotKind::dkv)});
    }
    return std::move(builder).finish();
  };
}

}  // namespace

const Scheme ring_self_attention_scheme{.name = "ring_self_attention",
                                        .prepare = prepare_ring_self_attention};

}  // namespace longhaul::parallel
