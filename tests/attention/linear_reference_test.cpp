// The reference's gradients against finite differences of its own forward, and its forward by hand.
#include "attention/linear_reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace longhaul::attention {
namespace {

struct Problem {
  explicit Problem(const Recurrence& how) : recurrence(how) {
    std::mt19937 random(11);
    std::normal_distribution<double> normal;
    const auto make = [&](std::size_t size) {
      std::vector<double> values(size);
      for (double& x : values) x = normal(random) / 2;
      return values;
    };
    const bool delta = how.rule == StateRule::delta;
    q = make(kRows * kKeyHeads * kDim);
    k = make(kRows * kKeyHeads * kDim);
    v = make(kRows * kHeads * kValueDim);
    dout = make(kRows * kHeads * kValueDim);
    initial = make(kValueDim * kHeads * kDim);
    dfinal = make(kValueDim * kHeads * kDim);
    log_decay = make(how.decay == Decay::none     ? 0
                     : how.decay == Decay::head   ? kHeads
                     : how.decay == Decay::scalar ? kRows * kHeads
                                                  : kRows * kHeads * kDim);
    for (double& a : log_decay) a = -std::abs(a);
    beta = make(delta ? kRows * kHeads : 0);
    for (double& b : beta) b = 1 / (1 + std::exp(-b));
  }

  LinearReferenceResult<double> result() const {
    LinearReferenceInputs<double> in{kRows, kHeads, kKeyHeads, kDim, kValueDim};
    in.q = q;
    in.k = k;
    in.v = v;
    in.log_decay = log_decay;
    in.beta = beta;
    in.starts = starts;
    in.initial_state = initial;
    in.dout = dout;
    in.dfinal_state = dfinal;
    return reference_linear<double>(in, recurrence);
  }
  double loss() const {
    const auto forward = result();
    double sum = 0;
    for (std::size_t i = 0; i < dout.size(); ++i) sum += forward.out[i] * dout[i];
    for (std::size_t i = 0; i < dfinal.size(); ++i) sum += forward.final_state[i] * dfinal[i];
    return sum;
  }

  static constexpr std::int64_t kRows = 9, kHeads = 4, kKeyHeads = 2, kDim = 3, kValueDim = 2;
  Recurrence recurrence;
  std::vector<std::int64_t> starts;
  std::vector<double> q, k, v, dout, log_decay, beta, initial, dfinal;
};

void expect_gradients(Problem p, const std::string& what) {
  const auto result = p.result();
  const auto check = [&](const char* name, std::vector<double>& x,
                         const std::vector<double>& gradient) {
    ASSERT_EQ(x.size(), gradient.size()) << what << " " << name;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double kept = x[i], step = 1e-5;
      x[i] = kept + step;
      const double above = p.loss();
      x[i] = kept - step;
      const double below = p.loss();
      x[i] = kept;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * step), 1e-8)
          << what << " " << name << " " << i;
    }
  };
  check("q", p.q, result.dq);
  check("k", p.k, result.dk);
  check("v", p.v, result.dv);
  check("log_decay", p.log_decay, result.dlog_decay);
  check("beta", p.beta, result.dbeta);
  check("initial_state", p.initial, result.dinitial_state);
}

TEST(LinearReference, GradientsAreFiniteDifferences) {
  for (const char* kind : recurrence_kinds()) {
    Problem p(recurrence_of_kind(kind));
    p.recurrence.scale = 0.7f;
    expect_gradients(p, kind);
    p.starts = {4, 5};
    expect_gradients(p, std::string(kind) + ", documents");
    p.starts = {0, 7};
    expect_gradients(p, std::string(kind) + ", a document from row 0");
  }
  Problem p(recurrence_of_kind("linear"));
  p.recurrence.causal = false;
  expect_gradients(p, "linear, full");
}

TEST(LinearReference, TheDeltaRuleReplacesWhatAKeyHolds) {
  // One head of dims 2 and 1. With beta = 1 a unit key reads what was last written to it.
  const std::vector<double> q{1, 0, 1, 0, 0, 1}, k{1, 0, 1, 0, 0, 1}, v{3, 5, 7}, beta{1, 1, 0.5};
  LinearReferenceInputs<double> in{3, 1, 1, 2, 1};
  in.q = q;
  in.k = k;
  in.v = v;
  in.beta = beta;
  const auto result = reference_linear<double>(in, {.rule = StateRule::delta});
  EXPECT_EQ(result.out, (std::vector<double>{3, 5, 3.5}));
  EXPECT_EQ(result.final_state, (std::vector<double>{5, 3.5}));
  // The decay comes before the error: half of 3 is left when 5 is written, and 5 replaces it.
  const std::vector<double> log_decay{-1, std::log(0.5), std::log(0.5)};
  in.log_decay = log_decay;
  const auto gated =
      reference_linear<double>(in, {.rule = StateRule::delta, .decay = Decay::scalar});
  EXPECT_DOUBLE_EQ(gated.out[1], 5);
  EXPECT_DOUBLE_EQ(gated.final_state[0], 2.5);
}

}  // namespace
}  // namespace longhaul::attention
