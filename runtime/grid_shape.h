#pragma once
// Sizes of the process grid's axes.

#include <cstdint>

namespace longhaul::runtime {

struct GridShape {
  std::int64_t data = 1;
  std::int64_t context = 1;
  std::int64_t tensor = 1;    ///< reserved: must be 1
  std::int64_t pipeline = 1;  ///< reserved: must be 1
  std::int64_t ranks() const { return data * context * tensor * pipeline; }
  bool operator==(const GridShape&) const = default;
};

}  // namespace longhaul::runtime
