#pragma once
// What tests of schemes run over: every scheme with its options, and masks of every kind.

#include <string>
#include <vector>

#include "attention/head_masks.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::test {

/// "usp(heads=2, nesting=ring_inside, around=burst)".
std::string show(const parallel::Expression& options);

/// Every scheme; two-level ones with every pair of degrees of `ranks`, both nestings, every inner
/// ring and both backwards. Only those that `heads` and `kv_heads` allow. A scheme's arguments are
/// varied as it declares them: numbers over the divisors of `ranks`.
std::vector<parallel::Expression> all_schemes(int ranks, int heads, int kv_heads);

struct NamedMask {
  std::string name;
  attention::Mask mask;
};
/// Masks of every shape over n tokens: full, causal, documents (empty, one token, across ranks),
/// windows, a shared prefix, blocks, rows and keys that see nothing, slices of every type.
std::vector<NamedMask> assorted_masks(std::int64_t n);

/// masks[h] of assorted_masks(n) for query head h, in runs that cross the borders of key/value
/// heads.
attention::HeadMasks masks_by_head(std::int64_t n, int heads);

/// Every layout of a batch of `batch` sequences whose masks, one after another, are `masks`.
std::vector<parallel::Layout> all_layouts(const attention::HeadMasks& masks, std::int64_t batch,
                                          int ranks);

}  // namespace longhaul::test
