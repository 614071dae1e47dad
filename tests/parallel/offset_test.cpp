// Scores that share an offset, as keys with a common direction give them. A softmax does not see
// it: dense float32 attention, which subtracts a row's maximum, is as exact as without. So must all
// schemes be, on any number of ranks, though they pass a row's LSE around.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "tests/support/attention_kinds.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::AttentionCase;
using test::Problem;
using test::show;
using test::SpreadJob;

constexpr std::int64_t kTokens = 97;

/// Random inputs whose scores share an offset: exactly, so that float32 rounds none of them and
/// what comes behind shows; or as they come, where keys share some direction, and values another
/// one.
enum class Inputs { exact, rounded };

AttentionCase offset_case(std::int64_t heads, std::int64_t kv_heads, Inputs inputs, float offset) {
  AttentionCase c;
  c.q_rows = c.k_rows = kTokens;
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.dim = c.value_dim = 20;
  c.fill(11);
  if (inputs == Inputs::exact) {
    test::share_offset(c, offset);
    return c;
  }
  c.scoring.scale = 0.3f;
  const auto along = [&](std::vector<float>& rows, float length) {
    for (std::size_t i = 0; i < rows.size(); ++i)
      rows[i] += length * std::sin(static_cast<float>(1 + i % 20));
  };
  along(c.q, 1);
  along(c.k, offset / 3);  // |(sin(1), ..., sin(20))|^2 is near 10
  along(c.v, 10);
  return c;
}

/// Every scheme once, over a layout that suits it.
std::vector<SpreadJob> jobs_of(const Problem& problem, int ranks) {
  std::vector<SpreadJob> jobs;
  const auto shapes = problem.shapes();
  for (const Expression& scheme : test::all_schemes(ranks, shapes.heads, shapes.kv_heads)) {
    const LayoutKind kind =
        scheme.name == "balanced_ring" ? LayoutKind::contiguous : LayoutKind::zigzag;
    jobs.push_back({&problem, Layout(kind, kTokens, 1, ranks), scheme});
  }
  return jobs;
}

/// Of the float reference against the double one.
std::array<double, 4> dense_errors(const Problem& problem) {
  AttentionCase c = problem.inputs;
  for (int head = 0; head < c.heads; ++head)
    c.head_bands.push_back(problem.masks.of(head).slices());
  const auto plain = test::run_reference<float>(c);
  const auto& exact = problem.oracle().exact;
  return {test::relative_error(plain.out, exact[0]), test::relative_error(plain.dq, exact[1]),
          test::relative_error(plain.dk, exact[2]), test::relative_error(plain.dv, exact[3])};
}

TEST(Offset, ErrorsAreThoseOfOneRankAndOneRanksThoseOfDenseAttention) {
  const std::vector<std::int64_t> documents{0, 20, 21, 60, kTokens};
  double most_alone = 0, most_spread = 0;
  for (const auto& [inputs, offset] : {std::pair{Inputs::exact, 0.f},
                                       {Inputs::exact, 106.f},
                                       {Inputs::exact, -1008.f},
                                       {Inputs::exact, 10048.f},
                                       {Inputs::exact, -10048.f},
                                       {Inputs::rounded, 1e3f},
                                       {Inputs::rounded, -1e4f}}) {
    for (const bool causal : {true, false}) {
      const Mask mask = causal ? Mask::causal(kTokens) : Mask::documents(documents);
      for (const auto& [ranks, heads, kv_heads] :
           {std::tuple{2, 4, 2}, {3, 6, 3}, {5, 10, 5}, {8, 8, 4}}) {
        const Problem problem(runtime::concat(causal ? "causal" : "documents", ", offset ", offset,
                                              inputs == Inputs::exact ? "" : ", rounded"),
                              mask, offset_case(heads, kv_heads, inputs, offset));
        const std::array<double, 4> dense = dense_errors(problem);
        const SpreadJob one{&problem, Layout(LayoutKind::contiguous, kTokens, 1, 1), "ring"};
        const auto alone = run_jobs(std::span(&one, 1), 1)[0].error;
        for (std::size_t t = 0; t < alone.size(); ++t) {
          EXPECT_LE(alone[t], 2 * dense[t]) << problem.name << " " << test::kTensors[t];
          most_alone = std::max(most_alone, alone[t] / dense[t]);
        }
        const std::vector<SpreadJob> jobs = jobs_of(problem, ranks);
        const auto reports = run_jobs(jobs, ranks);
        for (std::size_t j = 0; j < jobs.size(); ++j) {
          for (std::size_t t = 0; t < alone.size(); ++t) {
            EXPECT_LE(reports[j].error[t], 2 * alone[t])
                << show(jobs[j]) << " " << test::kTensors[t];
            most_spread = std::max(most_spread, reports[j].error[t] / alone[t]);
          }
          EXPECT_LE(reports[j].lse_error, 1e-6) << show(jobs[j]);
        }
      }
    }
  }
  std::printf("error(1) is at most %.2f of dense float32's, error(P) %.2f of error(1)\n",
              most_alone, most_spread);
}

}  // namespace
}  // namespace longhaul::parallel
