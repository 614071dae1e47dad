#include "parallel/schedule.h"

namespace longhaul::parallel {

const char* name(const Operation& operation) {
  return std::visit([](const auto& step) { return step.kName; }, operation);
}

bool on_channel(const Operation& operation) {
  return std::visit([](const auto& step) { return step.kOnChannel; }, operation);
}

std::vector<Access> accesses(const Operation& operation) {
  return std::visit([](const auto& step) { return accesses(step); }, operation);
}

const char* name(Direction direction) {
  return direction == Direction::forward ? "forward" : "backward";
}

Signature signature(const Shapes& shapes, Direction direction) {
  const bool forward = direction == Direction::forward;
  if (shapes.linear)
    return forward ? linear_forward_signature(*shapes.linear) : linear_backward_signature();
  return forward ? forward_signature(shapes.weighting) : backward_signature(shapes.weighting);
}

Count count(const Program& program) {
  Count total;
  for (const Slot& slot : program.slots) {
    if (slot.role == Role::scratch) total.scratch_bytes += slot_bytes(slot);
  }
  for (const Step& step : program.steps)
    std::visit([&](const auto& of) { add_cost(of, program, step.stream, total); }, step.operation);
  return total;
}

std::int64_t Count::staging_bytes(bool gathers) const {
  std::int64_t bytes = 0;
  for (const auto& [channel, most] : exchanged)
    bytes += gathers ? std::max(most.staged, most.gathered) : most.staged;
  return bytes;
}

LinkBytes link_bytes(const std::map<int, std::int64_t>& sent_to, int rank,
                     std::span<const int> node_of_rank) {
  const auto node = [&](int of) { return node_of_rank[static_cast<std::size_t>(of)]; };
  LinkBytes bytes;
  for (const auto& [peer, sent] : sent_to)
    (node(peer) == node(rank) ? bytes.within_nodes : bytes.between_nodes) += sent;
  return bytes;
}

std::vector<int> nodes_in_order(int ranks, int ranks_per_node) {
  std::vector<int> nodes;
  for (int rank = 0; rank < ranks; ++rank) nodes.push_back(rank / ranks_per_node);
  return nodes;
}

}  // namespace longhaul::parallel
