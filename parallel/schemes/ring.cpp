// The ring family over all ranks of the axis, and its schemes of one level: ring and burst. Ring
// Attention is this loop, on every rank:
//
//     kv = own k, v; out, lse = nothing
//     for hop in 0 .. P-1:
//         start: send kv to the next rank, receive kv' from the one before   (but after the last)
//         out, lse = merge(out, lse, attention(q, kv, what of the block's tokens q sees))
//         wait; kv = kv'
//
//     kv = own k, v                                                          backward
//     for hop in 0 .. P-1:
//         start: send kv on, receive kv'
//         dq_part, dkv_part = gradients(q, dout, lse, delta, kv); dq += dq_part
//         hop 0: dkv stays. Else dkv_part += what arrived for the block; send it on, at last home
//         wait; kv = kv'
//     dkv += what came home
//
// level_ring.cpp is the same loop for nested rings and both ways round. Any layout. A rank's own
// contribution to a gradient that circulates stays at home, so an accumulator starts at the first
// visitor and is home after P - 1 hops; a block travels no further than the last rank that sees any
// of it.
//
// Bytes sent per rank, all blocks needed everywhere, for e bytes an activation and a bytes an
// accumulator element on the wire, X = n H_kv, Y = n H: forward X (D + D_v) e (P - 1). Backward
// with keys X (D + D_v) (e + a) (P - 1), with queries Y ((D + D_v) e + 12 + D a) (P - 1).

#include "parallel/schemes/ring.h"

#include <memory>

namespace longhaul::parallel {

ProgramGenerator prepare_ring(const SchemeInputs& inputs) {
  struct Shared {
    Members members;
    RingKind kind;
    RingPlan plan;
    AttentionRecords records;
    std::vector<int> ranks;
  };
  const bool forward = inputs.direction == Direction::forward;
  Members members(inputs);
  RingKind kind = scheme_from_name(inputs.scheme.name)
                      .ring(inputs.scheme, members.size(), inputs.shapes, inputs.wire_dtype);
  RingPlan plan(members, kind.levels, forward ? Circulating::keys : kind.backward);
  auto shared = std::make_shared<Shared>(Shared{
      std::move(members), std::move(kind), std::move(plan), AttentionRecords(inputs.shapes), {}});
  for (int rank = 0; rank < shared->members.size(); ++rank) shared->ranks.push_back(rank);
  return [&inputs, shared, forward](int rank) {
    Builder builder(rank, static_cast<int>(shared->kind.levels.size()));
    const RingMember ring{builder,     shared->members, shared->plan, shared->records,
                          rank,        shared->ranks,   "",           inputs.wire_dtype,
                          inputs.lends};
    if (forward) {
      ring_forward(ring, add_forward_slots(builder, inputs, rank));
    } else {
      ring_backward(ring, add_backward_slots(builder, inputs, rank));
    }
    return std::move(builder).finish();
  };
}

namespace {

using Wire = std::optional<runtime::DType>;

RingKind of_keys(const Expression&, int members, const Shapes&, Wire) {
  return {{{members, 0}}, Circulating::keys};
}
RingKind of_queries(const Expression&, int members, const Shapes&, Wire) {
  return {{{members, 0}}, Circulating::queries};
}

}  // namespace

const Scheme ring_scheme{.name = "ring", .prepare = prepare_ring, .ring = of_keys};
const Scheme burst_scheme{.name = "burst", .prepare = prepare_ring, .ring = of_queries};

}  // namespace longhaul::parallel
