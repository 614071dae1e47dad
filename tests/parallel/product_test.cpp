// The product: every legal scheme x mask x layout, executed forward and backward over ranks that
// are threads, against the fp64 reference, and all schemes against each other.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <memory>
#include <set>

#include "runtime/error.h"
#include "tests/support/covering.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using test::Problem;
using test::Problems;
using test::ProblemSizes;
using test::show;
using test::SpreadJob;
using test::SpreadOptions;

/// Of jobs that differ in a scheme's options (degrees, nesting, what is inside) alone, another one
/// each time.
std::vector<SpreadJob> options_in_turn(const std::vector<SpreadJob>& jobs) {
  std::vector<SpreadJob> chosen;
  std::map<std::string, std::size_t> turns;
  const auto alike = [](const SpreadJob& a, const SpreadJob& b) {
    return a.problem == b.problem && a.layout.kind() == b.layout.kind() &&
           a.scheme.name == b.scheme.name;
  };
  for (std::size_t begin = 0, end = 0; begin < jobs.size(); begin = end) {
    while (end < jobs.size() && alike(jobs[begin], jobs[end])) ++end;
    chosen.push_back(jobs[begin + turns[jobs[begin].scheme.name]++ % (end - begin)]);
  }
  return chosen;
}

void expect_all_right(const std::vector<SpreadJob>& jobs, int ranks,
                      const SpreadOptions& options = {}) {
  const auto reports = run_jobs(jobs, ranks, options);
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    expect_right(jobs[j], reports[j]);
    expect_bytes_as_counted(jobs[j], reports[j], options);
    if (testing::Test::HasFailure()) return;  // one case is enough to read
  }
}

void expect_schemes_agree(const Problems& problems) {
  for (const auto& problem : problems) {
    const auto spread = problem->spread();
    for (std::size_t t = 0; t < spread.size(); ++t) {
      EXPECT_LE(spread[t], problem->oracle().bound[t])
          << problem->name << ": schemes differ in " << test::kTensors[t];
    }
  }
}

class Product : public testing::TestWithParam<int> {};

TEST_P(Product, EverySchemeMaskAndLayoutIsRight) {
  const int ranks = GetParam();
  std::size_t count = 0;
  for (const ProblemSizes& sizes : test::head_counts(ranks)) {
    SCOPED_TRACE(runtime::concat("heads ", sizes.heads, "/", sizes.kv_heads));
    const Problems all = test::every_mask(61, sizes);
    // At more ranks the verifier alone has all options of all cases (schemes_test.cpp).
    std::vector<SpreadJob> jobs = test::every_job(all, ranks);
    if (ranks > 3) jobs = options_in_turn(jobs);
    expect_all_right(jobs, ranks, {.envelope = true});
    expect_schemes_agree(all);
    count += jobs.size();
    std::set<std::string> ran;
    for (const SpreadJob& job : jobs) ran.insert(test::triple_of(job));
    EXPECT_EQ(ran, test::legal_pairs(all, ranks).triples);
  }
  std::printf("P=%d: %zu cases\n", ranks, count);
}

class ManyRanks : public testing::TestWithParam<int> {};

TEST_P(ManyRanks, EveryPairOfSchemeMaskLayoutAndHeadsIsRight) {
  const int ranks = GetParam();
  const std::int64_t n = ranks == 16 ? 37 : 67;  // two rows a rank, three on some
  std::vector<Problems> by_heads;
  std::vector<SpreadJob> candidates;
  std::set<std::string> pairs, triples, covered_triples;
  for (const ProblemSizes& sizes : test::head_counts(ranks)) {
    by_heads.push_back(test::every_mask(n, sizes));
    Problems& all = by_heads.back();
    // Many key/value heads make many messages: once for each scheme is enough of them.
    if (ranks == 32 && sizes.kv_heads == ranks) all.resize(2);
    for (SpreadJob& job : test::every_job(all, ranks)) candidates.push_back(std::move(job));
    test::LegalPairs legal = test::legal_pairs(all, ranks);
    pairs.merge(legal.all());
    triples.merge(legal.triples);
  }
  const std::vector<SpreadJob> jobs =
      test::covering_sample(candidates, pairs, {}, ranks == 16 ? 300 : 0);
  expect_all_right(jobs, ranks, {.poison = ranks == 16});
  EXPECT_EQ(test::pairs_of(jobs), pairs) << test::missing(test::pairs_of(jobs), pairs);
  for (const SpreadJob& job : jobs) covered_triples.insert(test::triple_of(job));
  EXPECT_GE(covered_triples.size(), ranks == 16 ? 290u : 180u);
  std::printf("P=%d: %zu cases, %zu pairs, %zu of %zu triples\n", ranks, jobs.size(), pairs.size(),
              covered_triples.size(), triples.size());
}

TEST(Scorings, EverySchemeIsRightWithSoftcapAndSigmoid) {
  const auto scoring = [](float softcap, attention::Weighting weighting, float bias) {
    attention::Scoring all;
    all.softcap = softcap;
    all.weighting = weighting;
    all.bias = bias;
    return all;
  };
  using attention::Weighting;
  for (const int ranks : {1, 3, 4}) {
    for (const attention::Scoring& with :
         {scoring(0.8f, Weighting::softmax, 0), scoring(0, Weighting::sigmoid, -4),
          scoring(1.5f, Weighting::sigmoid, 0.5f)}) {
      SCOPED_TRACE(runtime::concat("P=", ranks, " softcap ", with.softcap, " bias ", with.bias));
      test::AttentionCase inputs{53, 53, 12, 3, 16, 8};
      inputs.fill(31);
      const float scale = inputs.scoring.scale;
      inputs.scoring = with;
      inputs.scoring.scale = scale;
      Problems all;
      all.push_back(std::make_unique<Problem>("causal", attention::Mask::causal(53), inputs));
      all.push_back(std::make_unique<Problem>("by head", test::masks_by_head(53, 12), inputs));
      expect_all_right(test::every_job(all, ranks), ranks, {.envelope = true});
      expect_schemes_agree(all);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, ManyRanks, testing::Values(16, 32),
                         [](const auto& info) { return "P" + std::to_string(info.param); });
INSTANTIATE_TEST_SUITE_P(Ranks, Product, testing::Values(1, 2, 3, 4, 5, 6, 7, 8),
                         [](const auto& info) { return "P" + std::to_string(info.param); });

}  // namespace
}  // namespace longhaul::parallel
