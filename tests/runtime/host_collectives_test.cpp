// The communicator suite over loopback; host_collectives_mpi_test.cpp runs it over MPI.
#include <gtest/gtest.h>

#include "runtime/comm/loopback.h"
#include "tests/support/comm_suite.h"

namespace longhaul::test {
namespace {

class HostCollectives : public testing::TestWithParam<std::tuple<CommCase, int>> {};

TEST_P(HostCollectives, Loopback) {
  const auto& [test, ranks] = GetParam();
  runtime::run_loopback(ranks, {},
                        [&](std::unique_ptr<runtime::Communicator> world) { test.body(*world); });
}

std::string name_of(const testing::TestParamInfo<std::tuple<CommCase, int>>& info) {
  return std::string(std::get<0>(info.param).name) + "_np" +
         std::to_string(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(All, HostCollectives,
                         testing::Combine(testing::ValuesIn(comm_cases()),
                                          testing::Values(1, 2, 3, 4, 5, 7, 8, 16)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Lending, HostCollectives,
                         testing::Combine(testing::ValuesIn(lending_cases()),
                                          testing::Values(1, 2, 3, 4, 7)),
                         name_of);

}  // namespace
}  // namespace longhaul::test
