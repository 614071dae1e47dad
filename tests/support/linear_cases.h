#pragma once
// What tests of linear schemes run over: every kind of recurrence, every scheme with its options,
// and masks that a recurrence follows.

#include <string>
#include <vector>

#include "parallel/schemes/scheme.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::test {

/// Every linear scheme; groups and blocks that divide, do not divide, and exceed what they cut.
std::vector<parallel::Expression> linear_schemes(int key_heads);

/// Causal, and packed documents: empty, one token, short, across many ranks, over `batch` sequences
/// of n tokens.
std::vector<NamedMask> document_masks(std::int64_t n, std::int64_t batch);

/// Every layout of consecutive tokens.
std::vector<parallel::Layout> run_layouts(const attention::HeadMasks& masks, std::int64_t batch,
                                          int ranks);

/// Sizes and kind of a call.
parallel::Shapes linear_shapes(const std::string& kind, int heads = 4, int key_heads = 2,
                               std::int64_t dim = 8, std::int64_t value_dim = 8);

}  // namespace longhaul::test
