#pragma once
// What an MPI test may use; mpi_main.cpp provides it.

#include <cstdint>
#include <vector>

#include "runtime/comm/mpi.h"

namespace longhaul::test {

runtime::MpiSession& mpi_session();
/// The world communicator of the session. Its timeout is $LONGHAUL_TEST_TIMEOUT_SECONDS, 60 by
/// default. Its ranks share memory, unless $LONGHAUL_TEST_SHARED_MEMORY is "off", or "refused": by
/// the system, to rank 1.
runtime::Communicator& mpi_world();
/// Small, so that ordinary tests reach the splitting of messages.
constexpr std::int64_t kMaxMessageBytes = 64 * 1024;

/// Of `mine`, a number a job: numbers[j][r] of rank r, known to all ranks afterwards.
std::vector<std::vector<std::uint64_t>> of_all_ranks(const std::vector<std::uint64_t>& mine);

}  // namespace longhaul::test
