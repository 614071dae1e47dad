// Every scheme on a GPU that all ranks share, against the fp64 reference.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "tests/support/gpu.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::Problem;
using test::SpreadJob;

constexpr std::int64_t kTokens = 251;  // a prime: ragged over every number of ranks

std::vector<std::unique_ptr<Problem>> problems(bool bf16) {
  const test::ProblemSizes sizes{
      .heads = 16, .kv_heads = 8, .dim = 64, .value_dim = 64, .bf16 = bf16};
  const std::vector<std::int64_t> documents{0, 1, 1, 8, 100, 140, 229, kTokens};
  std::vector<std::unique_ptr<Problem>> all;
  const auto add = [&](const char* name, Mask mask) {
    all.push_back(std::make_unique<Problem>(name, std::move(mask), sizes));
  };
  add("causal", Mask::causal(kTokens));
  add("window", Mask::causal(kTokens).within(-37, 0));
  add("documents", Mask::documents(documents));
  return all;
}

/// Every scheme over every layout that suits it, the mask changing from one to the next.
std::vector<SpreadJob> jobs_of(const std::vector<std::unique_ptr<Problem>>& problems, int ranks) {
  std::vector<SpreadJob> jobs;
  std::size_t turn = 0;
  for (const auto kind : layout_kinds()) {
    for (const Expression& scheme : test::all_schemes(ranks, 16, 8)) {
      const Problem& problem = *problems[turn++ % problems.size()];
      const Combination asked{scheme, ranks, 16, 8, kind, is_causal(problem.masks)};
      if (refuse(asked)) continue;
      jobs.push_back({&problem, Layout::make(kind, problem.masks, 1, ranks), scheme});
    }
  }
  return jobs;
}

class SchemesCuda : public testing::TestWithParam<int> {};

TEST_P(SchemesCuda, AreRightInFloat32AndBfloat16) {
  LONGHAUL_NEEDS_GPU();
  const int ranks = GetParam();
  for (const bool bf16 : {false, true}) {
    const auto all = problems(bf16);
    const std::vector<SpreadJob> jobs = jobs_of(all, ranks);
    const auto reports =
        run_jobs(jobs, ranks, {.device = {runtime::DeviceKind::cuda, 0}, .poison = false});
    std::array<double, 4> most{};
    double lse = 0;
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      expect_right(jobs[j], reports[j]);
      for (std::size_t t = 0; t < most.size(); ++t)
        most[t] = std::max(most[t], reports[j].error[t]);
      lse = std::max(lse, reports[j].lse_error);
    }
    EXPECT_GE(jobs.size(), 30u);
    std::printf(
        "P=%d %s: %zu calls forward and backward; largest relative errors: out %.1e, dq "
        "%.1e, dk %.1e, dv %.1e, lse %.1e\n",
        ranks, bf16 ? "bfloat16" : "float32", jobs.size(), most[0], most[1], most[2], most[3], lse);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, SchemesCuda, testing::Values(1, 2, 4, 8),
                         [](const auto& info) { return "P" + std::to_string(info.param); });

}  // namespace
}  // namespace longhaul::parallel
