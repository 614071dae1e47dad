// GoogleTest's main under mpirun: one MpiSession, every rank runs the same tests, and the run fails
// when a rank fails or the number of ranks is not the expected one.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "runtime/comm/launcher.h"
#include "runtime/error.h"
#include "tests/support/mpi_test.h"

namespace longhaul::test {
namespace {

runtime::MpiSession* session = nullptr;
runtime::Communicator* world = nullptr;

int expected_ranks(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--expect-ranks") == 0) return std::atoi(argv[i + 1]);
  }
  return 0;
}

double timeout_seconds() {
  const char* text = std::getenv("LONGHAUL_TEST_TIMEOUT_SECONDS");
  return text == nullptr ? 60.0 : std::atof(text);
}

/// Whether this rank asks for shared memory; where the system is to refuse it, makes it do so.
bool shares_memory() {
  const char* set = std::getenv("LONGHAUL_TEST_SHARED_MEMORY");
  const std::string text = set == nullptr ? "" : set;
  if (text == "refused" && runtime::claimed_place(runtime::process_environment()).rank == 1) {
    std::int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    // MPI finds room in this; the addresses of an arena do not.
    const auto bytes = static_cast<rlim_t>(pages * 4096 + (std::int64_t{2} << 30));
    const rlimit limits{bytes, bytes};
    EXPECT_EQ(setrlimit(RLIMIT_AS, &limits), 0);
  }
  return text != "off";
}

/// How many ranks failed.
int failed_ranks(bool failed) {
  const runtime::Stream stream = runtime::Stream::cpu("verdict");
  runtime::Tensor count({1}, runtime::DType::float64, stream);
  runtime::fill(count, failed ? 1.0 : 0.0, stream);
  world->all_reduce(count, stream);
  stream.synchronize(runtime::deadline_in(timeout_seconds() + 5));
  return static_cast<int>(*count.as<double>());
}

int run(int argc, char** argv) {
  runtime::MpiSession owned({.timeout_seconds = timeout_seconds(),
                             .max_message_bytes = kMaxMessageBytes,
                             .share_memory = shares_memory()});
  session = &owned;
  const auto owned_world = owned.world();
  world = owned_world.get();
  runtime::set_thread_rank(runtime::concat("rank ", owned.rank()));
  if (owned.rank() != 0) {  // one rank reports what passes; failures of the others still show below
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    struct FailurePrinter final : testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& result) override {
        if (!result.failed()) return;
        std::fprintf(stderr, "[rank %d] %s:%d: %s\n", session->rank(), result.file_name(),
                     result.line_number(), result.summary());
      }
    };
    listeners.Append(new FailurePrinter);
  }
  bool failed = false;
  const int expected = expected_ranks(argc, argv);
  if (expected != owned.size()) {
    std::fprintf(stderr, "expected %d ranks (--expect-ranks), MPI has %d\n", expected,
                 owned.size());
    failed = true;
  } else {
    failed = RUN_ALL_TESTS() != 0;
  }
  const int failures = failed_ranks(failed);
  if (failures > 0 && owned.rank() == 0) std::fprintf(stderr, "%d ranks failed\n", failures);
  owned.close();
  return failures == 0 ? 0 : 1;
}

}  // namespace

runtime::MpiSession& mpi_session() { return *session; }
runtime::Communicator& mpi_world() { return *world; }

std::vector<std::vector<std::uint64_t>> of_all_ranks(const std::vector<std::uint64_t>& mine) {
  constexpr std::int64_t kParts = 4;  // of 16 bits, which a sum with zeros leaves alone
  const auto jobs = static_cast<std::int64_t>(mine.size());
  const runtime::Stream stream = runtime::Stream::cpu("fingerprints");
  runtime::Tensor parts({jobs, world->size(), kParts}, runtime::DType::float64, stream);
  runtime::fill(parts, 0, stream);
  stream.synchronize(runtime::deadline_in(60));
  const auto at = [&](std::int64_t job, std::int64_t rank, std::int64_t part) -> double& {
    return parts.as<double>()[(job * world->size() + rank) * kParts + part];
  };
  for (std::int64_t j = 0; j < jobs; ++j) {
    for (std::int64_t part = 0; part < kParts; ++part)
      at(j, world->rank(), part) =
          static_cast<double>(mine[static_cast<std::size_t>(j)] >> (16 * part) & 0xffff);
  }
  world->all_reduce(parts, stream);
  stream.synchronize(runtime::deadline_in(60));
  std::vector<std::vector<std::uint64_t>> all(mine.size());
  for (std::int64_t j = 0; j < jobs; ++j) {
    for (std::int64_t rank = 0; rank < world->size(); ++rank) {
      std::uint64_t number = 0;
      for (std::int64_t part = 0; part < kParts; ++part)
        number |= static_cast<std::uint64_t>(at(j, rank, part)) << (16 * part);
      all[static_cast<std::size_t>(j)].push_back(number);
    }
  }
  return all;
}

}  // namespace longhaul::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    return longhaul::test::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::fflush(nullptr);
    std::_Exit(1);  // the session is abandoned: MPI must not be finalised
  }
}
