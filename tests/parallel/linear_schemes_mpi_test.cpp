// Linear schemes over MPI processes: bit for bit what threads of one process give.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "attention/linear.h"
#include "tests/support/linear_cases.h"
#include "tests/support/mpi_test.h"
#include "tests/support/spread_linear.h"

namespace longhaul::parallel {
namespace {

/// A number of place and value (Steele et al. 2014, SplitMix).
std::uint64_t mixed(std::uint64_t place, std::uint64_t value) {
  std::uint64_t x = place * 0x9e3779b97f4a7c15ull + value;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

/// A job's answer, what was sent and what was kept, in a number that adds up: the ranks' own, whose
/// other rows are NaN, make that of all rows. Without the gradients of slopes, which each rank has
/// of its own rows.
std::uint64_t fingerprint(const test::LinearJob& job, const test::LinearAnswer& answer) {
  std::uint64_t sum = 0, tensor = 0;
  const auto add = [&](const std::vector<float>& values) {
    ++tensor;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!std::isnan(values[i]))
        sum += mixed(tensor << 32 | i, std::bit_cast<std::uint32_t>(values[i]));
    }
  };
  for (const auto* values : {&answer.out, &answer.dq, &answer.dk, &answer.dv, &answer.dbeta})
    add(*values);
  if (job.problem->inputs.recurrence.decay != attention::Decay::head) add(answer.dlog_decay);
  for (std::size_t rank = 0; rank < answer.sent.size(); ++rank) {
    tensor = 100 + rank;
    add(answer.kept[rank]);
    for (const auto& [peer, bytes] : answer.sent[rank])
      sum += mixed(~(rank << 32 | static_cast<std::uint64_t>(peer)),
                   static_cast<std::uint64_t>(bytes));
  }
  return sum;
}

/// Every job is also played by one of the ranks, with threads for all ranks.
TEST(LinearSchemesMpi, AreWhatThreadsGive) {
  runtime::Communicator& world = test::mpi_world();
  const int ranks = world.size();
  std::vector<test::LinearProblem> problems;
  for (const char* kind : attention::recurrence_kinds())
    problems.push_back(test::linear_problem(kind, {2 * 71, 4, 2, 8, 6}, 2, {0, 19, 20, 55}));
  std::vector<test::LinearJob> jobs;
  for (const test::LinearProblem& problem : problems) {
    for (const Layout& layout : test::run_layouts(problem.masks(), problem.batch, ranks)) {
      for (const Expression& scheme : test::linear_schemes(2))
        jobs.push_back({&problem, layout, scheme});
    }
  }
  const auto own = test::run_linear_jobs_of_rank(jobs, world);
  std::vector<std::uint64_t> mine;
  for (std::size_t j = 0; j < jobs.size(); ++j) mine.push_back(fingerprint(jobs[j], own[j]));
  const auto processes = test::of_all_ranks(mine);
  std::vector<test::LinearJob> here;
  std::vector<std::size_t> which;
  for (auto j = static_cast<std::size_t>(world.rank()); j < jobs.size();
       j += static_cast<std::size_t>(ranks)) {
    here.push_back(jobs[j]);
    which.push_back(j);
  }
  const auto threads = test::run_linear_jobs(here, ranks);
  for (std::size_t i = 0; i < here.size(); ++i) {
    std::uint64_t all = 0;
    for (const std::uint64_t number : processes[which[i]]) all += number;
    EXPECT_EQ(all, fingerprint(here[i], threads[i])) << show(here[i]);
  }
}

}  // namespace
}  // namespace longhaul::parallel
