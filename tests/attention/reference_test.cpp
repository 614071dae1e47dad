// The reference's gradients against finite differences of its own forward, and its forward by hand.
#include "attention/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace longhaul::attention {
namespace {

struct Problem {
  std::vector<double> q, k, v, dout;
  ReferenceInputs<double> inputs() const {
    ReferenceInputs<double> in{5, 7, 4, 2, 3, 2};
    in.q = q;
    in.k = k;
    in.v = v;
    in.dout = dout;
    in.scale = 0.7;
    return in;
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

// Row 0 sees nothing, row 4 two ranges.
const std::vector<Slice> kBands{{1, 5, 0, 3, -kUnbounded, -1}, {2, 5, 4, 7, 1, 3}};

double loss(const Problem& p) {
  const auto result = reference_attention(p.inputs(), kBands);
  double sum = 0;
  for (std::size_t i = 0; i < p.dout.size(); ++i) sum += result.out[i] * p.dout[i];
  return sum;
}

TEST(Reference, GradientsEqualFiniteDifferences) {
  Problem p = problem();
  const auto result = reference_attention(p.inputs(), kBands);
  const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient,
                         const char* name) {
    ASSERT_EQ(x.size(), gradient.size());
    double largest = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      constexpr double kStep = 1e-5;
      const double middle = x[i];
      x[i] = middle + kStep;
      const double above = loss(p);
      x[i] = middle - kStep;
      const double below = loss(p);
      x[i] = middle;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-8) << name << " " << i;
      largest = std::max(largest, std::abs(gradient[i]));
    }
    EXPECT_GT(largest, 0.1) << name;
  };
  check(p.q, result.dq, "dq");
  check(p.k, result.dk, "dk");
  check(p.v, result.dv, "dv");
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
