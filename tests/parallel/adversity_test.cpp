// Numbers and timing that break attention: huge logits, one-hot rows, rows that see one key or
// none, messages that come late and out of order, memory that holds NaN. And bfloat16.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <sstream>

#include "runtime/error.h"
#include "tests/support/covering.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"
#include "tests/support/temp_directory.h"
#include "tests/support/without_tiles.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using runtime::DType;
using test::AttentionCase;
using test::Problem;
using test::ProblemSizes;
using test::show;
using test::SpreadJob;
using test::SpreadOptions;
using test::SpreadReport;

/// Every scheme over every layout that suits it.
std::vector<SpreadJob> jobs_of(const Problem& problem, int ranks, std::int64_t batch = 1) {
  std::vector<SpreadJob> jobs;
  const auto shapes = problem.shapes();
  for (const Layout& layout : test::all_layouts(problem.masks, batch, ranks)) {
    for (const Expression& scheme : test::all_schemes(ranks, shapes.heads, shapes.kv_heads)) {
      if (!refuse({scheme, ranks, shapes.heads, shapes.kv_heads, layout.kind(),
                   is_causal(problem.masks), Family::softmax, sees_whole_past(problem.masks)})) {
        jobs.push_back({&problem, layout, scheme});
      }
    }
  }
  return jobs;
}

void expect_all_right(const std::vector<SpreadJob>& jobs, const SpreadOptions& options = {}) {
  const auto reports = run_jobs(jobs, jobs[0].layout.ranks(), options);
  for (std::size_t j = 0; j < jobs.size(); ++j) expect_right(jobs[j], reports[j]);
}

AttentionCase empty_case(std::int64_t n, std::int64_t heads, std::int64_t kv_heads,
                         std::int64_t dim) {
  AttentionCase c;
  c.q_rows = c.k_rows = n;
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.dim = c.value_dim = dim;
  c.fill(5);
  return c;
}

TEST(Adversity, LogitsScaledBy30) {
  AttentionCase c = empty_case(67, 8, 4, 16);
  c.scoring.scale *= 30;
  for (const Mask& mask : {Mask::full(67), Mask::causal(67)}) {
    const Problem problem("logits x 30", mask, c);
    for (const int ranks : {3, 4}) expect_all_right(jobs_of(problem, ranks));
  }
}

TEST(Adversity, OneHotRowsWhoseLseDiffersBy10000) {
  // Query i and key i - 20 point along one axis with length 100: a logit is 1e4 or 0, so a row is
  // one-hot over a key of another rank, whose partial LSE lies 1e4 above what is there before; or
  // -inf is there. Rows that do not see their key see all others alike.
  AttentionCase c = empty_case(53, 4, 2, 64);
  const auto one_hot = [](std::vector<float>& x, std::int64_t heads, std::int64_t shift) {
    const std::int64_t n = 53;
    for (std::int64_t row = 0; row < n; ++row) {
      for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t d = 0; d < 64; ++d)
          x[static_cast<std::size_t>((row * heads + head) * 64 + d)] =
              d == (row + shift) % n ? 100.f : 0.f;
      }
    }
  };
  one_hot(c.q, c.heads, 0);
  one_hot(c.k, c.kv_heads, 20);
  c.scoring.scale = 1;
  for (const Mask& mask : {Mask::full(53), Mask::causal(53)}) {
    const Problem problem("one-hot", mask, c);
    for (const int ranks : {2, 5}) expect_all_right(jobs_of(problem, ranks));
  }
}

TEST(Adversity, HugeEqualLogits) {
  // q is one axis, along which all keys are 1: every logit is the scale, exactly.
  for (const float logit : {200.f, 1e4f, -1e4f}) {
    AttentionCase c = empty_case(61, 4, 4, 8);
    c.scoring.scale = logit;
    for (auto* positive : {&c.v, &c.dout}) {
      for (float& x : *positive) x = 1 + x / 2;
    }
    for (std::size_t i = 0; i < c.q.size(); ++i) {
      c.q[i] = i % 8 == 0 ? 1.f : 0.f;
      if (i % 8 == 0) c.k[i] = 1;
    }
    const Problem problem("equal logits", Mask::causal(61), c);
    for (const int ranks : {1, 3, 4}) expect_all_right(jobs_of(problem, ranks));
  }
}

TEST(Adversity, RowsThatSeeOneKeyOrNone) {
  const std::int64_t n = 59;
  const std::vector<std::pair<const char*, Mask>> masks{
      // Everybody sees the first token alone, the last token alone, or only themselves.
      {"first key", Mask::from_slices(n, {{0, n, 0, 1}})},
      {"last key", Mask::from_slices(n, {{0, n, n - 1, n}})},
      {"diagonal", Mask::from_slices(n, {{0, n, 0, n, 0, 0}})},
      {"reversed halves", Mask::from_slices(n, {{0, n / 2, n - 1, n}, {n / 2 + 3, n, 0, 1}})},
      {"nothing", Mask::from_slices(n, {})},
      {"one pair", Mask::from_slices(n, {{n - 1, n, 0, 1}})},
  };
  for (const auto& [name, mask] : masks) {
    const Problem problem(name, mask, ProblemSizes{8, 4, 8, 8});
    for (const int ranks : {1, 3, 4}) expect_all_right(jobs_of(problem, ranks));
  }
}

TEST(Adversity, LateAndOutOfOrderMessagesPoisonAndThreadsChangeNoBit) {
  const std::vector<std::int64_t> offsets{0, 20, 21, 60, 71};
  const Problem documents("documents", Mask::documents(offsets), ProblemSizes{8, 4, 8, 8});
  const Problem full("full", Mask::full(71), ProblemSizes{8, 4, 8, 8});
  std::vector<SpreadJob> jobs = jobs_of(documents, 4);
  for (SpreadJob& job : jobs_of(full, 4)) jobs.push_back(std::move(job));
  const auto first = run_jobs(jobs, 4, {.poison = false});
  const auto expect_same = [&](const char* what, const std::vector<SpreadReport>& again) {
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      expect_right(jobs[j], first[j]);
      EXPECT_EQ(first[j].digests(), again[j].digests()) << show(jobs[j]) << " " << what;
    }
  };
  expect_same("over NaN in all memory, three times", run_jobs(jobs, 4, {.repeats = 3}));
  expect_same("with two threads", run_jobs(jobs, 4, {.threads = 2}));
  for (const std::uint64_t seed : {1, 2}) {
    runtime::LoopbackOptions late;
    late.latency_seconds = 0.0001;
    late.jitter_seconds = 0.001;
    late.jitter_seed = seed;
    expect_same("late and out of order", run_jobs(jobs, 4, {}, late));
  }
}

TEST(Adversity, LengthsThatLeaveRanksEmptyOrRagged) {
  for (const std::int64_t n : {1, 2, 7, 127}) {
    const Problem problem("causal", Mask::causal(n), ProblemSizes{6, 3, 8, 8});
    for (const int ranks : {3, 6, 8}) expect_all_right(jobs_of(problem, ranks));
  }
  const Problem blocks("assorted", test::assorted_masks(127).back().mask,
                       ProblemSizes{14, 7, 8, 8});
  expect_all_right(jobs_of(blocks, 7));
}

TEST(Adversity, AThousandRows) {  // many tiles a rank
  const Problem problem("causal", Mask::causal(1021), ProblemSizes{4, 2, 16, 16});
  std::vector<SpreadJob> jobs = jobs_of(problem, 4);
  std::erase_if(jobs, [](const SpreadJob& job) {
    return job.scheme.name == "usp" &&
           job.scheme.expression("around").value_or("ring").name == "double_ring";
  });
  expect_all_right(jobs);
}

TEST(Adversity, BatchesOfSequencesWithAMaskEach) {
  const std::vector<std::int64_t> offsets{0, 20, 50};
  const std::vector<Mask> masks{Mask::causal(50), Mask::documents(offsets), Mask::full(50)};
  const Problem problem("three sequences", Mask::concatenated(masks), ProblemSizes{12, 6, 8, 8});
  for (const int ranks : {1, 2, 3, 4, 6}) expect_all_right(jobs_of(problem, ranks, 3));
}

TEST(Adversity, KeysAndValuesOfDifferentWidth) {
  const Problem problem("causal", Mask::causal(61), ProblemSizes{8, 4, 24, 8});
  expect_all_right(jobs_of(problem, 4));
}

// ---- bfloat16
// ------------------------------------------------------------------------------------------------

TEST(Bfloat16, EveryPairOfSchemeMaskLayoutAndHeadsIsWithinBothBounds) {
  for (const int ranks : {3, 4, 8}) {
    std::vector<test::Problems> by_heads;
    std::vector<SpreadJob> candidates;
    std::set<std::string> legal;
    for (const ProblemSizes& sizes : test::head_counts(ranks, 8, true)) {
      by_heads.push_back(test::every_mask(61, sizes));
      for (SpreadJob& job : test::every_job(by_heads.back(), ranks))
        candidates.push_back(std::move(job));
      legal.merge(test::legal_pairs(by_heads.back(), ranks).all());
    }
    const std::vector<SpreadJob> jobs = test::covering_sample(candidates, legal);
    const auto reports = run_jobs(jobs, ranks);
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      expect_right(jobs[j], reports[j]);  // as exact as float32 can be on these inputs
      for (std::size_t t = 0; t < test::kTensors.size(); ++t) {  // and as a model keeps them
        EXPECT_LE(reports[j].rounded_error[t], t == 0 ? 4e-3 : 6e-3)
            << show(jobs[j]) << " " << test::kTensors[t];
      }
      expect_bytes_as_counted(jobs[j], reports[j]);
    }
    EXPECT_EQ(test::pairs_of(jobs), legal) << test::missing(test::pairs_of(jobs), legal);
    std::printf("P=%d: %zu cases, %zu pairs\n", ranks, jobs.size(), legal.size());
  }
}

/// Reports by scheme and rank count: all schemes at all of them. `many_heads` is for ulysses, which
/// needs a query head a rank.
using ByRanks = std::map<std::string, std::map<int, SpreadReport>>;
ByRanks run_over_ranks(const Problem& problem, const Problem& many_heads, DType wire) {
  ByRanks all;
  for (const int ranks : {1, 2, 4, 8, 16, 32}) {
    std::vector<SpreadJob> jobs;
    for (const std::string& name : scheme_names()) {
      const Expression scheme(name);
      const Problem& which = name == "ulysses" ? many_heads : problem;
      const LayoutKind kind = name == "balanced_ring" ? LayoutKind::contiguous : LayoutKind::zigzag;
      jobs.push_back({&which, Layout(kind, which.tokens(), 1, ranks), scheme});
    }
    const SpreadOptions options{.wire_dtype = wire};
    auto reports = run_jobs(jobs, ranks, options);
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      expect_bytes_as_counted(jobs[j], reports[j], options);
      all[jobs[j].scheme.name][ranks] = std::move(reports[j]);
    }
  }
  return all;
}

/// What parallel/README.md says that a bfloat16 wire costs: by scheme and rank count.
std::map<std::string, std::map<int, double>> documented_wire_costs() {
  std::istringstream readme(
      test::read_text(std::string(LONGHAUL_SOURCE_DIR) + "/parallel/README.md"));
  const std::string heading = "| scheme | P = 8 | P = 32 |";
  std::map<std::string, std::map<int, double>> costs;
  bool in_table = false;
  for (std::string line; std::getline(readme, line);) {
    if (line == heading) in_table = true;
    if (!in_table || line == heading || line.starts_with("|---")) continue;
    if (!line.starts_with("| `")) break;
    std::vector<std::string> cells;
    std::istringstream row(line.substr(1));
    for (std::string cell; std::getline(row, cell, '|');) cells.push_back(cell);
    std::istringstream names(cells.at(0));
    for (std::string text; std::getline(names, text, '`');) {
      if (text.find_first_of(" ,") != std::string::npos || text.empty()) continue;
      if (cells.at(1) != " ") costs[text][8] = std::stod(cells.at(1));
      if (cells.at(2) != " ") costs[text][32] = std::stod(cells.at(2));
    }
  }
  return costs;
}

TEST(Bfloat16, GradientsDoNotRotWithRanksAndTheBfloat16WireCosts) {
  // Gradients as a model keeps them, rounded to bfloat16 once. With the fp32 wire nothing but this
  // rounding shows, however many ranks.
  const test::WithoutTiles exact_kernels;
  const Problem problem("causal", Mask::causal(1024), ProblemSizes{8, 4, 16, 16, true});
  const Problem many_heads("causal", Mask::causal(256), ProblemSizes{32, 4, 16, 16, true});
  const ByRanks fp32 = run_over_ranks(problem, many_heads, DType::float32),
                bf16 = run_over_ranks(problem, many_heads, DType::bfloat16);
  const auto documented = documented_wire_costs();
  std::size_t compared = 0;
  for (const auto& [scheme, by_ranks] : fp32) {
    const auto& alone = by_ranks.at(1).rounded_error;
    for (const auto& [ranks, report] : by_ranks) {
      const SpreadReport& wired = bf16.at(scheme).at(ranks);
      double most = 0, most_wired = 0;  // growth of an error over one rank's
      for (const std::size_t t : {1, 2, 3}) {
        EXPECT_LE(report.rounded_error[t] / alone[t], 1.08)
            << scheme << " P=" << ranks << " " << test::kTensors[t];
        const Problem& which = scheme == "ulysses" ? many_heads : problem;
        EXPECT_LE(report.error[t], which.oracle().bound[t]) << scheme << " P=" << ranks;
        most = std::max(most, report.rounded_error[t] / alone[t]);
        most_wired = std::max(most_wired, wired.rounded_error[t] / alone[t]);
        // On the bfloat16 wire a sum is rounded by 2^-9 of itself at most for each of the P - 1
        // ranks that it comes from or passes; partial sums may be larger than what they end as, so
        // the bound is taken twice.
        EXPECT_LE(wired.error[t], report.error[t] + 2 * (ranks - 1) * std::ldexp(1, -9))
            << scheme << " P=" << ranks << " " << test::kTensors[t];
      }
      std::printf("%-20s P=%-2d error(P)/error(1): fp32 wire %.4f, bf16 wire %.3f\n",
                  scheme.c_str(), ranks, most, most_wired);
      // The measure tells the wires apart.
      if (ranks >= 8) {
        EXPECT_GT(most_wired, 1.08) << scheme << " P=" << ranks;
      }
      if (documented.contains(scheme) && documented.at(scheme).contains(ranks)) {
        EXPECT_NEAR(documented.at(scheme).at(ranks), most_wired, 0.03 * most_wired)
            << scheme << " P=" << ranks << " in parallel/README.md";
        ++compared;
      }
    }
  }
  EXPECT_EQ(compared, 2 * scheme_names().size()) << "cells of the table in parallel/README.md";
}

}  // namespace
}  // namespace longhaul::parallel
