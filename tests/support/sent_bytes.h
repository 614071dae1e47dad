#pragma once
// What the ranks of a schedule send to each other, counted from its programs.

#include <map>
#include <string>
#include <vector>

#include "parallel/schemes/scheme.h"

namespace longhaul::test {

struct Sent {
  std::vector<std::map<int, std::int64_t>> to;  ///< bytes by rank, by peer; no zeros
  std::int64_t messages = 0;
  std::int64_t of(int rank) const;
  std::int64_t total() const;
};

Sent sent(const parallel::Expression& options, const attention::HeadMasks& masks,
          const parallel::Layout& layout, const parallel::Shapes& shapes,
          parallel::Direction direction, runtime::DType wire_dtype = runtime::DType::float32);

}  // namespace longhaul::test
