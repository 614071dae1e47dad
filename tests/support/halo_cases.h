#pragma once
// What tests of halos run over.

#include <cstdint>
#include <vector>

#include "parallel/halo.h"

namespace longhaul::test {

/// Every layout over the documents whose runs are of consecutive tokens.
std::vector<parallel::Layout> consecutive_layouts(const std::vector<std::int64_t>& documents,
                                                  int ranks);

parallel::HaloInputs halo_inputs(const parallel::Layout& layout,
                                 const std::vector<std::int64_t>& documents,
                                 std::int64_t conv_width, parallel::Direction direction,
                                 std::int64_t channels = 3,
                                 runtime::DType activation = runtime::DType::float32);

}  // namespace longhaul::test
