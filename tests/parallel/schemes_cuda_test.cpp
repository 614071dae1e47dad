// Every scheme on a GPU that all ranks share, against the fp64 reference.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "attention/sdpa.h"
#include "tests/support/gpu.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::Problem;
using test::SpreadJob;

constexpr int kHeads = 16, kKvHeads = 8;

std::vector<std::unique_ptr<Problem>> problems(bool bf16) {
  constexpr std::int64_t kTokens = 251;  // a prime: ragged over every number of ranks
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
    for (const Expression& scheme : test::all_schemes(ranks, kHeads, kKvHeads)) {
      const Problem& problem = *problems[turn++ % problems.size()];
      const Combination asked{scheme,
                              ranks,
                              kHeads,
                              kKvHeads,
                              kind,
                              is_causal(problem.masks),
                              Family::softmax,
                              sees_whole_past(problem.masks)};
      if (refuse(asked)) continue;
      jobs.push_back({&problem, Layout::make(kind, problem.masks, 1, ranks), scheme});
    }
  }
  return jobs;
}

class SchemesCuda : public testing::TestWithParam<int> {};

constexpr runtime::Device kDevice{runtime::DeviceKind::cuda, 0};

void expect_all_right(const std::vector<SpreadJob>& jobs, attention::Kernels kernels,
                      const std::array<double, 4>& least) {
  const int ranks = jobs.front().layout.ranks();
  const auto reports =
      run_jobs(jobs, ranks, {.device = kDevice, .kernels = kernels, .poison = false});
  std::array<double, 4> most{};
  double lse = 0;
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    expect_right(jobs[j], reports[j], least);
    EXPECT_EQ(reports[j].ranks.front().taken, 0) << show(jobs[j]);
    for (std::size_t t = 0; t < most.size(); ++t) most[t] = std::max(most[t], reports[j].error[t]);
    lse = std::max(lse, reports[j].lse_error);
  }
  std::printf(
      "P=%d %s, %s kernels: %zu calls forward and backward; largest relative errors: out "
      "%.1e, dq %.1e, dk %.1e, dv %.1e, lse %.1e\n",
      ranks, jobs.front().problem->inputs.bf16 ? "bfloat16" : "float32",
      kernels == attention::Kernels::exact ? "exact" : "cuDNN's", jobs.size(), most[0], most[1],
      most[2], most[3], lse);
}

TEST_P(SchemesCuda, AreRightInFloat32AndBfloat16) {
  LONGHAUL_NEEDS_GPU();
  for (const bool bf16 : {false, true}) {
    const auto all = problems(bf16);
    const std::vector<SpreadJob> jobs = jobs_of(all, GetParam());
    EXPECT_GE(jobs.size(), 30u);
    expect_all_right(jobs, attention::Kernels::exact, {});
  }
}

// Kernels that round weights, partial results and gradients to bfloat16: the bounds of one block
// call (expect_matches_in_bfloat16), which merging does not exceed. Ranks and chunks divide the
// tokens, so that few graphs are built, a second each.
TEST_P(SchemesCuda, AreRightByCudnn) {
  LONGHAUL_NEEDS_GPU();
  if (const std::string reason = attention::detail::no_sdpa_reason(); !reason.empty())
    GTEST_SKIP() << reason;
  const int ranks = GetParam();
  const std::vector<std::int64_t> offsets{0, 128, 320, 512};
  const test::ProblemSizes sizes{
      .heads = kHeads, .kv_heads = kKvHeads, .dim = 64, .value_dim = 64, .bf16 = true};
  const Problem causal("causal", Mask::causal(512), sizes),
      documents("documents", Mask::documents(offsets), sizes);
  std::vector<SpreadJob> jobs;
  for (const std::string& name : scheme_names()) {
    const Expression scheme = parse_scheme(name);
    for (const Problem* problem : {&causal, &documents}) {
      const Combination asked{scheme, ranks, kHeads, kKvHeads, LayoutKind::zigzag, true};
      if (!refuse(asked))
        jobs.push_back({problem, Layout(LayoutKind::zigzag, 512, 1, ranks), resolved(asked)});
    }
  }
  EXPECT_GE(jobs.size(), 12u);
  expect_all_right(jobs, attention::Kernels::cudnn, {4e-3, 6e-3, 6e-3, 6e-3});
}

INSTANTIATE_TEST_SUITE_P(Ranks, SchemesCuda, testing::Values(1, 2, 4, 8),
                         [](const auto& info) { return "P" + std::to_string(info.param); });

}  // namespace
}  // namespace longhaul::parallel
