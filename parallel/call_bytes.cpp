#include "parallel/call_bytes.h"

#include <algorithm>

#include "parallel/prepared.h"

namespace longhaul::parallel {

namespace {

/// Of the tensor that a slot is bound to.
std::int64_t tensor_bytes(const Slot& slot) {
  std::int64_t bytes = 0;
  for (const Field& field : slot.record.fields)
    bytes += slot.rows * slot.heads * field.width * size_bytes(field.dtype);
  return bytes;
}

}  // namespace

CallBytes call_bytes(const SchemeInputs& inputs, int rank, const attention::Scoring& scoring,
                     const attention::BlockPlace& place) {
  CallBytes bytes;
  attention::BlockPlace sizes = place;
  sizes.sizes_only = true;
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    SchemeInputs call = inputs;
    call.direction = direction;
    Program program = prepare(call)(rank);
    const Count counted = count(program);
    bytes.staged = std::max(bytes.staged, counted.staging_bytes());
    bytes.gathered = std::max(bytes.gathered, counted.staging_bytes(true));
    const bool forward = direction == Direction::forward;
    for (const Slot& slot : program.slots) {
      const bool kept = forward && slot.role == Role::output && slot.record.side == Side::state;
      if (kept) bytes.kept += tensor_bytes(slot);
    }
    const Prepared prepared(std::move(program), signature(inputs.shapes, direction), scoring,
                            sizes);
    if (forward) bytes.kept += prepared.saved_bytes();
    (forward ? bytes.forward : bytes.backward) = prepared.arena_bytes();
  }
  return bytes;
}

CallBytes halo_bytes(const HaloInputs& inputs, int rank) {
  CallBytes bytes;
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    HaloInputs call = inputs;
    call.direction = direction;
    const Program program = prepare_halo(call)(rank);
    const Count counted = count(program);
    bytes.staged = std::max(bytes.staged, counted.staging_bytes());
    bytes.gathered = std::max(bytes.gathered, counted.staging_bytes(true));
    for (const Slot& slot : program.slots) {
      if (slot.role == Role::output)
        (direction == Direction::forward ? bytes.kept : bytes.backward) += tensor_bytes(slot);
    }
  }
  return bytes;
}

}  // namespace longhaul::parallel
