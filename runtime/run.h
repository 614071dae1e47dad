#pragma once
// Which indices of an axis: how the rows that a rank holds lie in a sequence.

#include <cstdint>

namespace longhaul::runtime {

/// The `count` indices first, first + stride, ...; stride is at least 1.
struct Run {
  std::int64_t first = 0, count = 0, stride = 1;
  bool operator==(const Run&) const = default;

  std::int64_t operator[](std::int64_t i) const { return first + i * stride; }
};

}  // namespace longhaul::runtime
