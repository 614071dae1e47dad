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

/// Runs them all, each twice: equal bit for bit.
void expect_sdpa_contract(const BlockDevice& device, const std::vector<NamedCase>& cases);

}  // namespace longhaul::test
