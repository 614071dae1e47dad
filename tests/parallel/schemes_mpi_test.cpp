// Every scheme over MPI processes: right, and bit for bit what threads of one process give.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iterator>
#include <map>

#include "tests/support/covering.h"
#include "tests/support/mpi_test.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using test::LegalPairs;
using test::Problem;
using test::ProblemSizes;
using test::SpreadJob;
using test::SpreadOptions;

/// A rank's answer and what it sent, in one number.
std::uint64_t fingerprint(const test::SpreadRank& rank) {
  std::uint64_t all = rank.digest;
  for (const auto& [peer, bytes] : rank.sent_to) {
    for (const std::int64_t value : {std::int64_t{peer}, bytes})
      all = (all ^ static_cast<std::uint64_t>(value)) * 0x100000001b3ull;
  }
  return all;
}

/// Every job is also played by one of the ranks, with threads for all ranks.
void expect_as_threads(const std::vector<SpreadJob>& jobs, const SpreadOptions& options) {
  runtime::Communicator& world = test::mpi_world();
  std::vector<std::uint64_t> mine;
  for (const auto& rank : run_jobs_of_rank(jobs, options, world)) mine.push_back(fingerprint(rank));
  const auto processes = test::of_all_ranks(mine);
  std::vector<SpreadJob> here;
  std::vector<std::size_t> which;
  for (auto j = static_cast<std::size_t>(world.rank()); j < jobs.size();
       j += static_cast<std::size_t>(world.size())) {
    here.push_back(jobs[j]);
    which.push_back(j);
  }
  const auto threads = run_jobs(here, world.size(), options);
  for (std::size_t i = 0; i < here.size(); ++i) {
    std::vector<std::uint64_t> same;
    for (const test::SpreadRank& rank : threads[i].ranks) same.push_back(fingerprint(rank));
    EXPECT_EQ(processes[which[i]], same) << show(here[i]);
    if (options.wire_dtype == runtime::DType::float32) expect_right(here[i], threads[i]);
  }
}

/// What runs on each of the rank counts: every legal (scheme, layout) on each of them, and on all
/// of them together, one rank alone apart, every legal (scheme, mask), (mask, layout), (scheme,
/// heads) and (scheme, dtype).
class Plan {
 public:
  Plan() {
    std::vector<int> counts{LONGHAUL_SCHEME_RANKS};
    std::ranges::sort(counts, std::greater());
    for (const int ranks : counts) {
      std::vector<SpreadJob> candidates;
      for (ProblemSizes sizes : test::head_counts(ranks)) {
        sizes.bf16 = (static_cast<int>(problems_.size()) + ranks) % 2 == 0;
        problems_.push_back(test::every_mask(kTokens, sizes));
        for (SpreadJob& job : test::every_job(problems_.back(), ranks))
          candidates.push_back(std::move(job));
        LegalPairs legal = test::legal_pairs(problems_.back(), ranks);
        wanted_here_[ranks].merge(legal.scheme_and_layout);
        std::erase_if(legal.others, [](const auto& pair) { return pair.starts_with("options"); });
        if (ranks > 1) wanted_.merge(legal.others);
      }
      std::set<std::string> left;
      std::ranges::set_difference(wanted_, covered_, std::inserter(left, left.end()));
      std::set<std::string> required = wanted_here_[ranks];
      if (ranks == kLast) required.merge(left);
      jobs_[ranks] = test::covering_sample(candidates, required, left);
      if (ranks > 1) covered_.merge(test::pairs_of(jobs_[ranks]));
    }
  }
  const std::vector<SpreadJob>& jobs(int ranks) const { return jobs_.at(ranks); }
  /// The pairs of scheme and layout that must run on `ranks` ranks.
  const std::set<std::string>& wanted(int ranks) const { return wanted_here_.at(ranks); }
  /// Pairs that must run on some ranks, and that do.
  const std::set<std::string>& wanted() const { return wanted_; }
  const std::set<std::string>& covered() const { return covered_; }

 private:
  static constexpr std::int64_t kTokens = 61;
  static constexpr int kLast = 2;  ///< ranks that take what the others leave
  std::vector<test::Problems> problems_;
  std::map<int, std::vector<SpreadJob>> jobs_;
  std::map<int, std::set<std::string>> wanted_here_;
  std::set<std::string> wanted_, covered_;
};

TEST(SchemesMpi, EqualLoopbackBitForBitAndTheReference) {
  const int ranks = test::mpi_world().size();
  const Plan plan;
  const std::vector<SpreadJob>& jobs = plan.jobs(ranks);
  expect_as_threads(jobs, {});
  expect_as_threads(jobs, {.wire_dtype = runtime::DType::bfloat16});
  std::set<std::string> ran;
  for (const SpreadJob& job : jobs) ran.insert(test::scheme_and_layout(job));
  EXPECT_EQ(ran, plan.wanted(ranks)) << test::missing(ran, plan.wanted(ranks));
  EXPECT_EQ(test::missing(plan.covered(), plan.wanted()), "") << "never run on any ranks";
  std::printf("%zu jobs; on all ranks together %zu pairs\n", jobs.size(), plan.wanted().size());
}

TEST(SchemesMpi, MessagesBeyondTheSizeLimit) {
  // Messages are larger than the session's limit, so they travel in pieces.
  const int ranks = test::mpi_world().size();
  constexpr int kRows = 12, kHeads = 16, kDim = 128;
  static_assert(kRows * kHeads * kDim * 4 > test::kMaxMessageBytes);
  const std::int64_t n = kRows * ranks;
  const Problem problem("causal", attention::Mask::causal(n),
                        ProblemSizes{kHeads, kHeads, kDim, kDim});
  std::vector<SpreadJob> jobs;
  for (const char* name : {"ring", "group_cast"}) {
    const Expression scheme(name);
    jobs.push_back({&problem, Layout(LayoutKind::zigzag, n, 1, ranks), scheme});
  }
  expect_as_threads(jobs, {});
}

}  // namespace
}  // namespace longhaul::parallel
