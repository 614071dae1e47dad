// Block calls through cuDNN with a stand-in for it (support/cuda_emulation): how a call is cut,
// where results lie, offsets, merges and sums, with our kernels' own source.
#include <gtest/gtest.h>

#include "tests/support/emulated_plans.h"
#include "tests/support/sdpa_cases.h"

namespace longhaul::attention {
namespace {

TEST(SdpaEmulated, KeepsTheBlockContract) {
  const test::EmulatedPlans plans(Kernels::cudnn);
  test::expect_sdpa_contract(plans.device(), test::sdpa_cases());
}

}  // namespace
}  // namespace longhaul::attention
