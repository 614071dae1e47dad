// The source of the CUDA block kernels, compiled for the host (support/cuda_emulation): the same
// arithmetic, tiles, masks and barriers, without a device.
#include <gtest/gtest.h>

#include "tests/support/emulated_plans.h"

namespace longhaul::attention {
namespace {

TEST(BlockCudaEmulated, KeepsTheBlockContract) {
  const test::EmulatedPlans plans(Kernels::exact);
  test::expect_block_contract(plans.device(), true);
}

}  // namespace
}  // namespace longhaul::attention
