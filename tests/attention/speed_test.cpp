// A guard against losing the kernels' speed, not a benchmark: generous, and relative to this
// machine's FMA rate measured beside each repeat with the same thread's CPU clock. Best of several:
// other load only slows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "tests/support/kernel_bench.h"

namespace longhaul::attention {
namespace {

TEST(Speed, BlockKernelsReachHalfOfTheirGoals) {
  constexpr double kForward = 0.75 / 2, kBackward = 0.65 / 2;
  KernelCase which;
  which.tokens = 2048;
  which.dim = 128;
  double forward = 0, backward = 0;
  for (int attempt = 0; attempt < 3 && (forward < kForward || backward < kBackward); ++attempt) {
    for (const KernelRates& rates : measure_block_kernels(which, 1)) {
      forward = std::max(forward, rates.forward_ratio());
      backward = std::max(backward, rates.backward_ratio());
    }
  }
  std::printf(
      "fp32, one head, S=2048, D=128, one thread: forward %.2f, backward %.2f of the fp32 FMA "
      "rate\n",
      forward, backward);
  EXPECT_GE(forward, kForward);
  EXPECT_GE(backward, kBackward);
}

TEST(Speed, OtherScoringsKeepHalfOfTheSoftmaxRate) {
  struct Kind {
    const char* name;
    Scoring scoring;
  };
  const Kind kinds[] = {
      {"softcap", {.softcap = 30}},
      {"sigmoid", {.weighting = Weighting::sigmoid, .bias = -8}},
      {"softcap, sigmoid", {.softcap = 30, .weighting = Weighting::sigmoid, .bias = -8}}};
  KernelCase which;
  which.tokens = 2048;
  const auto best = [&](const Scoring& scoring) {
    which.scoring = scoring;
    KernelRates rates;  // both parts' best, each against the FMA rate beside it
    rates.peak_flops = 1;
    for (const KernelRates& one : measure_block_kernels(which, 5)) {
      rates.forward_flops = std::max(rates.forward_flops, one.forward_ratio());
      rates.backward_flops = std::max(rates.backward_flops, one.backward_ratio());
    }
    return rates;
  };
  for (const Kind& kind : kinds) {
    double forward = 0, backward = 0;
    for (int attempt = 0; attempt < 5 && std::min(forward, backward) < 0.5; ++attempt) {
      const KernelRates plain = best({}), other = best(kind.scoring);
      forward = std::max(forward, other.forward_ratio() / plain.forward_ratio());
      backward = std::max(backward, other.backward_ratio() / plain.backward_ratio());
    }
    std::printf("%s: forward %.2f, backward %.2f of softmax's rate\n", kind.name, forward,
                backward);
    EXPECT_GE(forward, 0.5) << kind.name;
    EXPECT_GE(backward, 0.5) << kind.name;
  }
}

TEST(Speed, LinearKernelsReachThreeTenthsOfTheFmaRate) {
  for (const char* kind : recurrence_kinds()) {
    LinearKernelCase which;
    which.recurrence = recurrence_of_kind(kind);
    // Gates of every key dim are work that the rate does not count.
    const double bound = which.recurrence.decay == Decay::vector ? 0.2 : 0.3;
    double forward = 0, backward = 0;
    for (int attempt = 0; attempt < 5 && std::min(forward, backward) <= bound; ++attempt) {
      for (const KernelRates& rates : measure_linear_kernels(which, 3)) {
        forward = std::max(forward, rates.forward_ratio());
        backward = std::max(backward, rates.backward_ratio());
      }
    }
    std::printf(
        "%s, fp32, one head, S=2048, d=e=128, one thread: forward %.2f, backward %.2f of the "
        "fp32 FMA rate\n",
        kind, forward, backward);
    EXPECT_GT(forward, bound) << kind;
    EXPECT_GT(backward, bound) << kind;
  }
}

}  // namespace
}  // namespace longhaul::attention
