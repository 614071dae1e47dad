#pragma once
// Attention whose tasks are dealt by the test, and external servers that are threads of the test.

#include <array>
#include <memory>
#include <vector>

#include "parallel/disaggregation/transport.h"
#include "tests/support/spread_attention.h"

namespace longhaul::test {

/// Every bit of out, LSE, dq, dk and dv of all ranks' rows, in that order of tensors, then ranks,
/// from programs of the plans by direction. float32 softmax only.
std::vector<std::vector<std::uint32_t>> dealt(const SpreadJob& job,
                                              const std::array<parallel::TaskPlan, 2>& plans);

/// A transport that computes tasks itself, as servers would. Fails the test for a task of no
/// server.
std::shared_ptr<parallel::TaskTransport> servers_in_process(int count);

}  // namespace longhaul::test
