#include "tests/support/sent_bytes.h"

namespace longhaul::test {

using namespace parallel;

std::int64_t Sent::of(int rank) const {
  std::int64_t bytes = 0;
  for (const auto& [peer, sent] : to[static_cast<std::size_t>(rank)]) bytes += sent;
  return bytes;
}

std::int64_t Sent::total() const {
  std::int64_t bytes = 0;
  for (int rank = 0; rank < static_cast<int>(to.size()); ++rank) bytes += of(rank);
  return bytes;
}

Sent sent(const Expression& options, const attention::HeadMasks& masks, const Layout& layout,
          const Shapes& shapes, Direction direction, runtime::DType wire_dtype) {
  SchemeInputs inputs{masks, layout, shapes, direction};
  if (wire_dtype != runtime::DType::float32) inputs.wire_dtype = wire_dtype;
  inputs.scheme = options;
  Sent all;
  const ProgramGenerator generate = prepare(inputs);
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    Count counted = count(generate(rank));
    std::erase_if(counted.sent_to, [](const auto& entry) { return entry.second == 0; });
    all.to.push_back(std::move(counted.sent_to));
    all.messages += counted.sent_messages;
  }
  return all;
}

}  // namespace longhaul::test
