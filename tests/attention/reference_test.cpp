// The reference's gradients against finite differences of its own forward, and its forward by hand.
#include "attention/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "runtime/error.h"

namespace longhaul::attention {
namespace {

// Row 0 sees nothing, row 4 two ranges.
const std::vector<Slice> kBands{{1, 5, 0, 3, -kUnbounded, -1}, {2, 5, 4, 7, 1, 3}};

struct Problem {
  std::vector<double> q, k, v, dout;
  std::vector<double> sinks{};
  Scoring scoring{.scale = 0.7f};
  std::vector<std::vector<Slice>> head_bands{4, kBands};

  ReferenceResult<double> result() const {
    ReferenceInputs<double> in{5, 7, 4, 2, 3, 2};
    in.q = q;
    in.k = k;
    in.v = v;
    in.dout = dout;
    in.scale = scoring.scale;
    in.softcap = scoring.softcap;
    in.weighting = scoring.weighting;
    in.bias = scoring.bias;
    in.sinks = sinks;
    return reference_attention<double>(in, head_bands);
  }
  double loss() const {
    const auto forward = result();
    double sum = 0;
    for (std::size_t i = 0; i < dout.size(); ++i) sum += forward.out[i] * dout[i];
    return sum;
  }
};

Problem problem() {
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  const auto make = [&](std::size_t size) {
    std::vector<double> values(size);
    for (double& x : values) x = normal(random);
    return values;
  };
  return {make(5 * 4 * 3), make(7 * 2 * 3), make(7 * 2 * 2), make(5 * 4 * 2)};
}

void expect_gradients(Problem p) {
  const auto result = p.result();
  const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient,
                         const char* name) {
    ASSERT_EQ(x.size(), gradient.size());
    double largest = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      constexpr double kStep = 1e-5;
      const double middle = x[i];
      x[i] = middle + kStep;
      const double above = p.loss();
      x[i] = middle - kStep;
      const double below = p.loss();
      x[i] = middle;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-8) << name << " " << i;
      largest = std::max(largest, std::abs(gradient[i]));
    }
    EXPECT_TRUE(x.empty() || largest > 0.05) << name;
  };
  check(p.q, result.dq, "dq");
  check(p.k, result.dk, "dk");
  check(p.v, result.dv, "dv");
  check(p.sinks, result.dsinks, "dsinks");
}

TEST(Reference, GradientsEqualFiniteDifferences) {
  const Scoring scorings[] = {
      {.scale = 0.7f},
      {.scale = 0.7f, .softcap = 1.5f},
      {.scale = 0.7f, .weighting = Weighting::sigmoid, .bias = -0.5f},
      {.scale = 0.7f, .softcap = 1.5f, .weighting = Weighting::sigmoid, .bias = 0.25f}};
  for (const Scoring& scoring : scorings) {
    SCOPED_TRACE(runtime::concat("softcap ", scoring.softcap, " bias ", scoring.bias));
    Problem p = problem();
    p.scoring = scoring;
    expect_gradients(p);
    p.head_bands[1] = {};
    p.head_bands[2] = {{0, 5, 0, 7}};
    expect_gradients(p);
    if (scoring.weighting == Weighting::sigmoid) continue;
    p.sinks = {0.5, -1, 2, 0};
    expect_gradients(p);
  }
}

TEST(Reference, HeadMasksAndOneMaskForAll) {
  const Problem p = problem();
  ReferenceInputs<double> in{5, 5, 4, 2, 3, 2};
  in.q = p.q;
  in.k = std::span(p.k).first(5 * 2 * 3);
  in.v = std::span(p.v).first(5 * 2 * 2);
  const Mask a = Mask::causal(5), b = Mask::documents(std::vector<std::int64_t>{0, 2, 5});
  const auto each = reference_attention(in, HeadMasks::per_head({a, a, b, a}));
  const auto of = [&](const Mask& mask) { return reference_attention(in, mask.slices()); };
  EXPECT_EQ(reference_attention(in, HeadMasks(a)).out, of(a).out);
  const auto with_a = of(a), with_b = of(b);
  EXPECT_NE(with_a.out, with_b.out);
  for (std::size_t i = 0; i < 5 * 4; ++i) {
    const auto& one = i % 4 == 2 ? with_b : with_a;
    EXPECT_EQ(each.lse[i], one.lse[i]);
    EXPECT_EQ(each.out[2 * i], one.out[2 * i]);
  }
}

TEST(Reference, ScoringByHand) {
  const std::vector<double> q{2}, k{0.5, -3, 9}, v{10, 20, 1000}, sinks{0.25};
  const std::vector<Slice> bands{{0, 1, 0, 2}};  // scores 1 and -6
  ReferenceInputs<double> in{1, 3, 1, 1, 1, 1};
  in.q = q;
  in.k = k;
  in.v = v;
  in.softcap = 2;
  const double a = 2 * std::tanh(0.5), b = 2 * std::tanh(-3.0);
  EXPECT_DOUBLE_EQ(reference_attention(in, bands).lse[0], std::log(std::exp(a) + std::exp(b)));
  in.sinks = sinks;
  const double sum = std::exp(a) + std::exp(b) + std::exp(0.25);
  EXPECT_DOUBLE_EQ(reference_attention(in, bands).lse[0], std::log(sum));
  EXPECT_DOUBLE_EQ(reference_attention(in, bands).out[0],
                   (10 * std::exp(a) + 20 * std::exp(b)) / sum);
  EXPECT_EQ(reference_attention(in, std::vector<Slice>{}).out[0], 0);
  EXPECT_EQ(reference_attention(in, std::vector<Slice>{}).lse[0], 0.25);
  in.sinks = {};
  in.weighting = Weighting::sigmoid;
  in.bias = 1;
  const auto sigmoid = reference_attention(in, bands);
  EXPECT_DOUBLE_EQ(sigmoid.out[0], 10 / (1 + std::exp(-a - 1)) + 20 / (1 + std::exp(-b - 1)));
  EXPECT_TRUE(sigmoid.lse.empty());
}

TEST(Reference, ForwardByHand) {
  const std::vector<double> q{1, 2}, k{0.5, 0, -1}, v{10, 20, 30};
  ReferenceInputs<double> in{2, 3, 1, 1, 1, 1};
  in.q = q;
  in.k = k;
  in.v = v;
  const std::vector<Slice> bands{{1, 2, 0, 2}};
  const auto result = reference_attention(in, bands);
  EXPECT_TRUE(std::isinf(result.lse[0]) && result.lse[0] < 0);
  EXPECT_EQ(result.out[0], 0);
  EXPECT_DOUBLE_EQ(result.lse[1], std::log(std::exp(1.0) + 1));
  EXPECT_DOUBLE_EQ(result.out[1], (10 * std::exp(1.0) + 20) / (std::exp(1.0) + 1));
  EXPECT_TRUE(result.dq.empty() && result.dk.empty() && result.dv.empty());
}

}  // namespace
}  // namespace longhaul::attention
