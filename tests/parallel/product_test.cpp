// The product: every legal scheme x mask x layout, executed forward and backward over ranks that
// are threads, against the fp64 reference, and all schemes against each other.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <memory>
#include <set>

#include "runtime/error.h"
#include "tests/support/mask_words.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using test::Problem;
using test::ProblemSizes;
using test::show;
using test::SpreadJob;
using test::SpreadOptions;
using Problems = std::vector<std::unique_ptr<Problem>>;

/// Heads that Ulysses can share among `ranks`: as many key/value heads, four queries a key/value
/// head, one key/value head.
std::vector<ProblemSizes> head_counts(int ranks) {
  const int at_least_two = std::max(2, ranks);
  return {{at_least_two, at_least_two}, {4 * at_least_two, at_least_two}, {at_least_two, 1}};
}

/// Every mask by name, two that differ by head, and shapes that no name has.
Problems problems(std::int64_t n, const ProblemSizes& sizes) {
  Problems all;
  for (const auto& [name, parameters] : test::mask_samples(n, sizes.heads)) {
    all.push_back(
        std::make_unique<Problem>(name, attention::make_mask(name, parameters, n), sizes));
  }
  for (const auto& [name, mask] : test::assorted_masks(n)) {
    if (name == "documents of one token" || name == "assorted")
      all.push_back(std::make_unique<Problem>(name, mask, sizes));
  }
  all.push_back(std::make_unique<Problem>(
      "by head", test::masks_by_head(n, static_cast<int>(sizes.heads)), sizes));
  return all;
}

bool legal(const SpreadJob& job) {
  const auto shapes = job.problem->shapes();
  return !refuse({job.scheme, job.layout.ranks(), shapes.heads, shapes.kv_heads, job.layout.kind(),
                  is_causal(job.problem->masks)});
}

/// Every problem over every layout under every scheme; of a scheme's options (degrees, nesting,
/// what is inside) all, or a different one each time.
enum class Options { all, in_turn };
std::vector<SpreadJob> jobs_of(const Problems& problems, int ranks, Options options,
                               std::int64_t batch = 1) {
  std::vector<SpreadJob> jobs;
  std::map<std::string, std::size_t> turns;
  for (const auto& problem : problems) {
    const auto shapes = problem->shapes();
    for (const Layout& layout : test::all_layouts(problem->masks, batch, ranks)) {
      std::map<std::string, std::vector<SpreadJob>> by_name;
      for (const SchemeOptions& scheme : test::all_schemes(ranks, shapes.heads, shapes.kv_heads)) {
        SpreadJob job{problem.get(), layout, scheme};
        if (legal(job)) by_name[scheme.name].push_back(std::move(job));
      }
      for (const auto& [name, variants] : by_name) {
        if (options == Options::all) {
          jobs.insert(jobs.end(), variants.begin(), variants.end());
        } else {
          jobs.push_back(variants[turns[name]++ % variants.size()]);
        }
      }
    }
  }
  return jobs;
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
  for (const ProblemSizes& sizes : head_counts(ranks)) {
    SCOPED_TRACE(runtime::concat("heads ", sizes.heads, "/", sizes.kv_heads));
    const Problems all = problems(61, sizes);
    // At more ranks the verifier alone has all options of all cases (schemes_test.cpp).
    const std::vector<SpreadJob> jobs =
        jobs_of(all, ranks, ranks <= 3 ? Options::all : Options::in_turn);
    expect_all_right(jobs, ranks, {.envelope = true});
    expect_schemes_agree(all);
    count += jobs.size();
  }
  std::printf("P=%d: %zu cases\n", ranks, count);
}

class ManyRanks : public testing::TestWithParam<int> {};

TEST_P(ManyRanks, EverySchemeIsRight) {
  // Every scheme with all its options, each under another mask, layout and number of heads.
  const int ranks = GetParam();
  std::vector<Problems> by_heads;
  for (const ProblemSizes& sizes : head_counts(ranks)) by_heads.push_back(problems(67, sizes));
  const std::size_t sample = ranks == 16 ? 101 : 307;  // one case in so many
  std::vector<SpreadJob> jobs;
  std::set<std::string> names;
  for (const Problems& all : by_heads) {
    const std::vector<SpreadJob> candidates = jobs_of(all, ranks, Options::all);
    for (std::size_t j = 0; j < candidates.size(); ++j) {
      const bool new_name = names.insert(candidates[j].scheme.name).second;
      if (new_name || j % sample == 0) jobs.push_back(candidates[j]);
    }
  }
  EXPECT_EQ(names.size(), scheme_names().size());
  expect_all_right(jobs, ranks);
  std::printf("P=%d: %zu cases\n", ranks, jobs.size());
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
      expect_all_right(jobs_of(all, ranks, Options::all), ranks, {.envelope = true});
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
