// Linear schemes over MPI processes: bit for bit what threads of one process give.
#include <gtest/gtest.h>

#include <cmath>

#include "attention/linear.h"
#include "tests/support/linear_cases.h"
#include "tests/support/mpi_test.h"
#include "tests/support/spread_linear.h"

namespace longhaul::parallel {
namespace {

/// This rank's rows of an answer: what another rank computed is NaN in its own.
void keep_rows_of(const std::vector<float>& own, std::vector<float>& all) {
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (std::isnan(own[i])) all[i] = own[i];
  }
}

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
  auto threads = test::run_linear_jobs(jobs, ranks);
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    test::LinearAnswer& want = threads[j];
    keep_rows_of(own[j].out, want.out);
    keep_rows_of(own[j].dq, want.dq);
    keep_rows_of(own[j].dk, want.dk);
    keep_rows_of(own[j].dv, want.dv);
    keep_rows_of(own[j].dbeta, want.dbeta);
    if (jobs[j].problem->inputs.recurrence.decay == attention::Decay::head)
      want.dlog_decay = own[j].dlog_decay;  // each rank's own; theirs is the sum
    keep_rows_of(own[j].dlog_decay, want.dlog_decay);
    const auto rank = static_cast<std::size_t>(world.rank());
    EXPECT_TRUE(own[j].same_bits(want)) << show(jobs[j]);
    EXPECT_EQ(own[j].sent[rank], want.sent[rank]) << show(jobs[j]);
    EXPECT_EQ(own[j].kept[rank], want.kept[rank]) << show(jobs[j]);
  }
}

}  // namespace
}  // namespace longhaul::parallel
