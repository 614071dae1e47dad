// A guard against losing the kernels' speed, not a benchmark: generous, and relative to this
// machine's FMA rate measured beside each repeat with the same thread's CPU clock. Best of several:
// other load only slows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "tests/support/kernel_bench.h"

namespace longhaul::attention {
namespace {

TEST(Speed, BlockKernelsReachAQuarterOfTheFmaRate) {
  KernelCase which;
  which.tokens = 4096;
  which.dim = 64;
  double forward = 0, backward = 0;
  for (int attempt = 0; attempt < 5 && std::min(forward, backward) < 0.25; ++attempt) {
    for (const KernelRates& rates : measure_block_kernels(which, 3)) {
      forward = std::max(forward, rates.forward_ratio());
      backward = std::max(backward, rates.backward_ratio());
    }
  }
  std::printf(
      "fp32, one head, S=4096, D=64, one thread: forward %.2f, backward %.2f of the fp32 FMA "
      "rate\n",
      forward, backward);
  EXPECT_GE(forward, 0.25);
  EXPECT_GE(backward, 0.25);
}

}  // namespace
}  // namespace longhaul::attention
