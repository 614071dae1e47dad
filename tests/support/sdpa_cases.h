#pragma once
// What block calls through cuDNN must compute, on a device or with a stand-in for cuDNN.

#include <string>
#include <vector>

#include "tests/support/block_runner.h"

namespace longhaul::test {

/// bfloat16, every form that a call can take: full, causal, windows, either bound alone, ragged
/// documents, equal ones as a batch, several calls a row, rows and keys that nothing sees, head
/// groups, head dims, parts that are added.
std::vector<NamedCase> sdpa_cases();
/// Every kind of band in parts that are merged, and over strided views.
std::vector<NamedCase> sdpa_bound_otherwise();

/// Out within 4e-3, gradients within 6e-3 of the fp64 reference, in norm: rounding to bfloat16 is
/// 1.7e-3, and a kernel rounds weights and results (measured: at most 3.1e-3,
/// launch/gpu/RESULTS.md). Where a gradient cancels, within 2^-9 of the sum of its terms'
/// magnitudes. LSE within 1e-5 max(1, |lse|), its low part 0 or what merging left.
void expect_matches_in_bfloat16(const AttentionCase& which, const AttentionResult& got);

/// Runs them all, each twice: equal bit for bit.
void expect_sdpa_contract(const BlockDevice& device, const std::vector<NamedCase>& cases);

}  // namespace longhaul::test
