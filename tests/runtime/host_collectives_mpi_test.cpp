// The communicator suite of host_collectives_test.cpp over MPI.
#include <gtest/gtest.h>

#include "tests/support/comm_suite.h"
#include "tests/support/mpi_test.h"

namespace longhaul::test {
namespace {

class HostCollectives : public testing::TestWithParam<CommCase> {};

TEST_P(HostCollectives, Mpi) { GetParam().body(mpi_world()); }

INSTANTIATE_TEST_SUITE_P(All, HostCollectives, testing::ValuesIn(comm_cases()),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(Lending, HostCollectives, testing::ValuesIn(lending_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(MpiSession, KnowsItsPlace) {
  EXPECT_EQ(mpi_world().rank(), mpi_session().rank());
  EXPECT_EQ(mpi_world().size(), mpi_session().size());
  EXPECT_LT(mpi_session().local_rank(), mpi_session().local_size());
  EXPECT_FALSE(mpi_session().host_name().empty());
  EXPECT_FALSE(mpi_session().mpi_version().empty());
  EXPECT_THROW(mpi_session().world(), runtime::Error);
}

}  // namespace
}  // namespace longhaul::test
