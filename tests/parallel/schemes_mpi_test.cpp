// Every scheme over MPI processes: right, and bit for bit what threads of one process give.
#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/support/mpi_test.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using test::Problem;
using test::SpreadJob;
using test::SpreadOptions;

/// Every rank also plays all ranks as threads, so the oracle needs no communication.
void expect_as_threads(const std::vector<SpreadJob>& jobs, const SpreadOptions& options) {
  runtime::Communicator& world = test::mpi_world();
  const auto mine = run_jobs_of_rank(jobs, options, world);
  const auto threads = run_jobs(jobs, world.size(), options);
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const auto& same = threads[j].ranks[static_cast<std::size_t>(world.rank())];
    EXPECT_EQ(mine[j].digest, same.digest) << show(jobs[j]);
    EXPECT_EQ(mine[j].sent_to, same.sent_to) << show(jobs[j]);
    if (options.wire_dtype == runtime::DType::float32) expect_right(jobs[j], threads[j]);
  }
}

TEST(SchemesMpi, EqualLoopbackBitForBitAndTheReference) {
  const int ranks = test::mpi_world().size(), heads = 2 * ranks;
  const test::ProblemSizes sizes{heads, ranks, 16, 8}, narrow{heads, ranks, 16, 8, true};
  std::vector<std::unique_ptr<Problem>> problems;
  for (const auto& [name, mask] : test::assorted_masks(127)) {
    problems.push_back(std::make_unique<Problem>(name, mask, sizes));
    problems.push_back(std::make_unique<Problem>(name, mask, narrow));
  }
  problems.push_back(std::make_unique<Problem>("by head", test::masks_by_head(127, heads), sizes));
  // Every scheme under masks and layouts that change from one to the next.
  std::vector<SpreadJob> jobs;
  const int picks = ranks > 4 ? 1 : 2;  // each rank also plays all ranks: quadratic work
  std::size_t next = 0;
  for (const SchemeOptions& scheme : test::all_schemes(ranks, heads, ranks)) {
    for (int pick = 0; pick < picks; ++pick, ++next) {
      const Problem& problem = *problems[next % problems.size()];
      const auto layouts = test::all_layouts(problem.masks, 1, ranks);
      const Layout& layout = layouts[next / problems.size() % layouts.size()];
      if (refuse({scheme, ranks, heads, ranks, layout.kind(), is_causal(problem.masks)})) continue;
      jobs.push_back({&problem, layout, scheme});
    }
  }
  expect_as_threads(jobs, {});
  expect_as_threads(jobs, {.wire_dtype = runtime::DType::bfloat16});
}

TEST(SchemesMpi, MessagesBeyondTheSizeLimit) {
  // Messages are larger than the session's limit, so they travel in pieces.
  const int ranks = test::mpi_world().size();
  const std::int64_t n = 300 * ranks;
  static_assert(300 * 2 * 64 * 4 > test::kMaxMessageBytes);
  const Problem problem("causal", attention::Mask::causal(n), test::ProblemSizes{2, 2, 64, 64});
  std::vector<SpreadJob> jobs;
  for (const char* name : {"ring", "group_cast"}) {
    SchemeOptions scheme;
    scheme.name = name;
    jobs.push_back({&problem, Layout(LayoutKind::zigzag, n, 1, ranks), scheme});
  }
  expect_as_threads(jobs, {});
}

}  // namespace
}  // namespace longhaul::parallel
