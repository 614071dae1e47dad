// Ranks of one host that do not share memory: told not to (2 ranks), or because the system refuses
// it to one of them (3 ranks). Lending is refused, MPI carries messages, and all know why.
#include <gtest/gtest.h>

#include <cstdlib>

#include "runtime/shared_memory.h"
#include "tests/support/comm_suite.h"
#include "tests/support/mpi_test.h"

namespace longhaul::test {
namespace {

TEST(Unshared, EveryRankSaysWhy) {
  const std::string text = mpi_session().sharing_text(),
                    set = getenv("LONGHAUL_TEST_SHARED_MEMORY");
  EXPECT_TRUE(text.starts_with("none, MPI carries all messages: rank ")) << text;
  if (set == "off") {
    EXPECT_NE(text.find("rank 0: it is told not to"), std::string::npos) << text;
  } else {
    EXPECT_NE(text.find("rank 1: the system refuses "), std::string::npos) << text;
    EXPECT_NE(text.find("Cannot allocate memory"), std::string::npos) << text;
  }
}

TEST(Unshared, StreamsTakeOrdinaryMemory) {
  EXPECT_EQ(runtime::stream_memory_arena(), nullptr);
  EXPECT_FALSE(mpi_world().lends());
  const auto alone = mpi_world().split(mpi_world().rank(), 0, "alone");
  EXPECT_TRUE(alone->lends());  // to itself
}

class Unlent : public testing::TestWithParam<CommCase> {};
TEST_P(Unlent, Mpi) { GetParam().body(mpi_world()); }
INSTANTIATE_TEST_SUITE_P(All, Unlent,
                         testing::Values(comm_cases().front(), lending_cases().front()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace longhaul::test
