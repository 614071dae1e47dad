// A peer that does not take part, over MPI. Registered with a short timeout.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <thread>

#include "runtime/error.h"
#include "tests/support/mpi_test.h"

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;

double process_cpu_seconds() {
  rusage usage = {};
  EXPECT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double timeout_seconds() { return std::atof(std::getenv("LONGHAUL_TEST_TIMEOUT_SECONDS")); }

/// A receive that nobody serves ends in time, costs little CPU, names the peer and leaves MPI
/// usable.
TEST(MpiHang, AMissingPeerIsNamed) {
  const auto group = mpi_world().split(0, mpi_world().rank(), "context");
  const int missing = group->size() - 1;
  const Stream stream = Stream::cpu("comm");
  if (group->rank() == missing) {
    std::this_thread::sleep_for(std::chrono::duration<double>(timeout_seconds() + 0.5));
  } else {
    const Tensor in({5}, DType::float32, stream);
    const Clock::time_point begin = Clock::now();
    const double cpu = process_cpu_seconds();
    group->exchange({}, {{missing, {in.view()}}}, "ring hop 3", stream);
    try {
      stream.synchronize(deadline_in(60));
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::hang);
      const std::string text = error.what();
      for (const std::string& part :
           {concat("rank ", group->rank(), " waited"), std::string("'ring hop 3'"),
            std::string("'context'"), concat("for rank ", missing, " (20 bytes to receive)")}) {
        EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
      }
    }
    const double waited = std::chrono::duration<double>(Clock::now() - begin).count();
    EXPECT_GE(waited, timeout_seconds());
    EXPECT_LT(waited, timeout_seconds() + 5);
    EXPECT_LT(process_cpu_seconds() - cpu, 0.5 * waited) << "waiting burns the CPU";
  }
  const Stream next = Stream::cpu("next");  // the other is poisoned
  mpi_world().barrier(next);
  next.synchronize(deadline_in(60));
}

TEST(MpiHang, IdlingBurnsNoCpu) {
  const double cpu = process_cpu_seconds();
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_LT(process_cpu_seconds() - cpu, 0.1);
}

}  // namespace
}  // namespace longhaul::test
