// Inputs that break careless kernels, under every kind of scoring: huge logits, one-hot rows, lone
// keys, far LSE, empty sides, NaN where nobody looks.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attention/block.h"
#include "tests/support/attention_case.h"
#include "tests/support/attention_kinds.h"

namespace longhaul::attention {
namespace {

using runtime::concat;
using test::AttentionCase;
using test::AttentionResult;
using test::expect_matches_reference;
using test::run_kernel;
using test::scoring_kinds;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

AttentionCase make(std::int64_t q_rows, std::int64_t k_rows, std::vector<Slice> bands,
                   const test::NamedScoring& scoring) {
  AttentionCase c{q_rows, k_rows, 4, 2, 24, 40, std::move(bands)};
  c.fill(11);
  scoring.apply(c);
  return c;
}

void expect_finite(const AttentionResult& result) {
  for (const auto* values : {&result.out, &result.dq, &result.dk, &result.dv, &result.dsinks}) {
    for (const float x : *values) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST(Adversity, LogitsTimesThirty) {
  for (const auto& scoring : scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    auto c = make(150, 500, {{0, 150, 0, 500, -kUnbounded, 350}}, scoring);
    c.scoring.scale *= 30;
    for (float& x : c.q) x *= 3;
    expect_matches_reference(c, run_kernel(c));
    expect_matches_reference(c, run_kernel(c, {.key_cuts = {250, 251}}));
  }
}

TEST(Adversity, OneHotRows) {
  // Row i's query is 40 times key i's unit vector: its own key gets score 1600, the others 0.
  for (const auto& scoring : scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    auto c = make(24, 24, {{0, 24, 0, 24}}, scoring);
    c.scoring.scale = 1;
    std::fill(c.q.begin(), c.q.end(), 0.0f);
    std::fill(c.k.begin(), c.k.end(), 0.0f);
    for (std::int64_t i = 0; i < 24; ++i) {
      for (std::int64_t h = 0; h < 4; ++h) c.q[static_cast<std::size_t>((i * 4 + h) * 24 + i)] = 40;
      for (std::int64_t h = 0; h < 2; ++h) c.k[static_cast<std::size_t>((i * 2 + h) * 24 + i)] = 40;
    }
    for (const auto& cuts : {std::vector<std::int64_t>{}, {5, 6, 20}}) {
      const auto got = run_kernel(c, {.key_cuts = cuts});
      expect_finite(got);
      expect_matches_reference(c, got);
      if (c.sigmoid() || c.scoring.softcap > 0) continue;
      for (std::int64_t i = 0; i < 24; ++i) {
        for (std::int64_t h = 0; h < 4; ++h) {
          for (std::int64_t d = 0; d < 40; ++d) {
            ASSERT_EQ(got.out[static_cast<std::size_t>((i * 4 + h) * 40 + d)],
                      c.v[static_cast<std::size_t>((i * 2 + h / 2) * 40 + d)]);
          }
        }
      }
    }
  }
}

TEST(Adversity, RowsOfOneKeyOrNone) {
  std::vector<Slice> bands;
  for (std::int64_t i = 0; i < 200; ++i) {
    if (i % 3 != 0) bands.push_back({i, i + 1, 2 * i % 190, 2 * i % 190 + 1});
  }
  for (const auto& scoring : scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    const auto c = make(200, 200, bands, scoring);
    for (const auto& cuts : {std::vector<std::int64_t>{}, {60, 61, 130}}) {
      const auto got = run_kernel(c, {.key_cuts = cuts});
      expect_matches_reference(c, got);
      if (!c.sigmoid() && c.sinks.empty()) {  // one key weighs 1, whatever its score
        EXPECT_EQ(got.dq, std::vector<float>(got.dq.size()));
        EXPECT_EQ(got.dk, std::vector<float>(got.dk.size()));
      }
      for (std::size_t x = 0; x < 4 * 40; ++x) EXPECT_EQ(got.out[x], 0);  // row 0 sees nothing
      for (std::size_t h = 0; h < got.lse.size() && h < 4; ++h)
        EXPECT_EQ(got.lse[h], c.sinks.empty() ? -kInfinity : c.sinks[h]);
    }
  }
}

TEST(Adversity, PartialsWhoseLseDifferByTenThousand) {
  // Keys of one third score about 0, of another 1e4, of the last -1e4, in every order.
  for (const auto& scoring : scoring_kinds()) {
    for (const int high : {0, 1, 2}) {
      SCOPED_TRACE(concat(scoring.name, ", the high third is ", high));
      auto c = make(70, 90, {{0, 70, 0, 90, -kUnbounded, 20}}, scoring);
      c.scoring.scale = 1;
      for (std::size_t row = 0; row < 70 * 4; ++row) c.q[row * 24] = 100;
      for (std::size_t row = 0; row < 90 * 2; ++row) {
        const int third = static_cast<int>(row / 60);
        c.k[row * 24] = third == high ? 100 : third == (high + 1) % 3 ? 0 : -100;
      }
      const auto got = run_kernel(c, {.key_cuts = {30, 60}});
      expect_finite(got);
      expect_matches_reference(c, got);
      expect_matches_reference(c, run_kernel(c));
    }
  }
}

TEST(Adversity, ScoresThatShareAnOffset) {
  // Dense float32 attention subtracts a row's maximum and never sees the offset; neither may the
  // kernels, though between them there is only the LSE.
  for (const auto& scoring : scoring_kinds()) {
    if (scoring.scoring.softcap > 0 || scoring.scoring.weighting == Weighting::sigmoid) continue;
    for (const float offset : {0.f, 1008.f, -1008.f, 10048.f, -10048.f}) {
      for (const bool bf16 : {false, true}) {
        SCOPED_TRACE(concat(scoring.name, ", offset ", offset, bf16 ? " bf16" : ""));
        AttentionCase c{150, 400, 4, 2, 24, 40, {{0, 150, 0, 400, -kUnbounded, 250}}};
        c.bf16 = bf16;
        c.fill(1);
        scoring.apply(c);
        test::share_offset(c, offset);
        const auto exact = test::run_reference<double>(c);
        const auto plain = test::run_reference<float>(c);
        for (const auto& cuts : {std::vector<std::int64_t>{}, {60, 61, 333}}) {
          const auto got = run_kernel(c, {.key_cuts = cuts});
          expect_matches_reference(c, got);
          if (c.on_tiles()) continue;
          EXPECT_LE(test::relative_error(got.out, exact.out),
                    2 * test::relative_error(plain.out, exact.out));
          EXPECT_LE(test::relative_error(got.dq, exact.dq),
                    2 * test::relative_error(plain.dq, exact.dq));
          EXPECT_LE(test::relative_error(got.dk, exact.dk),
                    2 * test::relative_error(plain.dk, exact.dk));
          EXPECT_LE(test::relative_error(got.dv, exact.dv),
                    2 * test::relative_error(plain.dv, exact.dv));
        }
      }
    }
  }
}

TEST(Adversity, AnEmptyPartLeavesEveryBitAsItWas) {
  // The rows see keys of the second part only, so the first and the last are nothing to them.
  for (const auto& scoring : scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    auto c = make(60, 100, {{0, 60, 32, 64, -kUnbounded, 20}}, scoring);
    AttentionCase alone = c;
    alone.k_rows = 32;
    alone.bands = {{0, 60, 0, 32, -kUnbounded, 20 - 32}};
    alone.k = {c.k.begin() + 32 * 2 * 24, c.k.begin() + 64 * 2 * 24};
    alone.v = {c.v.begin() + 32 * 2 * 40, c.v.begin() + 64 * 2 * 40};
    const auto expected = run_kernel(alone), got = run_kernel(c, {.key_cuts = {32, 64}});
    EXPECT_EQ(got.out, expected.out);
    EXPECT_EQ(got.lse, expected.lse);
    EXPECT_EQ(got.dq, expected.dq);
    EXPECT_EQ(got.dsinks, expected.dsinks);
    EXPECT_EQ(std::vector(got.dk.begin(), got.dk.begin() + 32 * 48), std::vector<float>(32 * 48));
    EXPECT_EQ(std::vector(got.dk.begin() + 32 * 48, got.dk.begin() + 64 * 48), expected.dk);
    EXPECT_EQ(std::vector(got.dv.begin() + 64 * 80, got.dv.end()), std::vector<float>(36 * 80));
  }
}

TEST(Adversity, NaNWhereNothingIsVisible) {
  // Rows below 7 see nothing, keys from 83 are seen by nobody: unused slots and padding.
  for (const auto& scoring : scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    auto clean = make(90, 95, {{7, 90, 0, 83, -kUnbounded, 3}, {50, 51, 60, 80}}, scoring);
    auto poisoned = clean;
    std::fill_n(poisoned.q.begin(), 7 * 4 * 24, kNaN);
    std::fill_n(poisoned.dout.begin(), 7 * 4 * 40, kInfinity);
    std::fill(poisoned.k.begin() + 83 * 2 * 24, poisoned.k.end(), kNaN);
    std::fill(poisoned.v.begin() + 83 * 2 * 40, poisoned.v.end(), kNaN);
    for (const auto& cuts : {std::vector<std::int64_t>{}, {30, 88}}) {
      const auto expected = run_kernel(clean, {.key_cuts = cuts});
      auto got = run_kernel(poisoned, {.key_cuts = cuts});
      if (!clean.sinks.empty()) {
        // delta = 0 * infinity is NaN, and the rows' sinks saw it; nothing else does.
        EXPECT_TRUE(std::isnan(got.dsinks[0]));
        got.dsinks = expected.dsinks;
      }
      EXPECT_EQ(got, expected);
      expect_finite(got);
    }
  }
}

TEST(Adversity, SoftcapOfHugeScores) {
  // From saturated to beyond float's range: scores of 2.4e3, 2.4e21 and +-infinity.
  const auto kinds = scoring_kinds();
  for (const auto& scoring : {kinds[1], kinds[3], kinds[5]}) {
    for (const float magnitude : {1e1f, 1e10f, 1e25f}) {
      SCOPED_TRACE(concat(scoring.name, " ", magnitude));
      auto c = make(40, 70, {{0, 40, 0, 70, -kUnbounded, 30}}, scoring);
      c.scoring.scale = 1;
      for (float& x : c.q) x = (1 + std::abs(x)) * magnitude;
      for (std::size_t i = 0; i < c.k.size(); ++i) {
        // A key's elements have one sign, so that no dot product is infinity - infinity.
        c.k[i] = (1 + std::abs(c.k[i])) * magnitude * (i / 24 % 3 == 0 ? -1.0f : 1.0f);
      }
      for (const auto& cuts : {std::vector<std::int64_t>{}, {33}}) {
        const auto got = run_kernel(c, {.key_cuts = cuts});
        expect_finite(got);
        expect_matches_reference(c, got);
        EXPECT_EQ(got.dq, std::vector<float>(got.dq.size()));  // a flat cap passes nothing on
      }
    }
  }
}

TEST(Adversity, SigmoidOfHugeScores) {
  const auto kinds = scoring_kinds();
  auto c = make(40, 70, {{0, 40, 0, 70, -kUnbounded, 30}}, kinds[4]);
  for (const float scale : {1e2f, 1e30f}) {
    c.scoring.scale = scale;
    const auto got = run_kernel(c);
    expect_finite(got);
    expect_matches_reference(c, got);
  }
}

TEST(Adversity, NaNThatIsSeenShows) {
  for (const auto& scoring : scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    auto c = make(40, 40, {{0, 40, 0, 40, -kUnbounded, 0}}, scoring);
    c.q[10 * 4 * 24] = c.v[20 * 2 * 40] = kNaN;
    const auto got = run_kernel(c);
    EXPECT_TRUE(std::isnan(got.out[10 * 4 * 40]) && std::isnan(got.dq[10 * 4 * 24]));
    EXPECT_TRUE(c.sigmoid() || std::isnan(got.lse[10 * 4]));
    EXPECT_TRUE(std::isnan(got.out[20 * 4 * 40]) && std::isnan(got.out[39 * 4 * 40]));
    EXPECT_FALSE(std::isnan(got.out[19 * 4 * 40]) || std::isnan(got.out[9 * 4 * 40]));
  }
}

}  // namespace
}  // namespace longhaul::attention
