// The source of the CUDA block kernels, compiled for the host (support/cuda_emulation): the same
// arithmetic, tiles, masks and barriers, without a device.
#include <gtest/gtest.h>

#include "attention/block_impl.h"
#include "tests/support/block_runner.h"

namespace longhaul::attention {
namespace {

TEST(BlockCudaEmulated, KeepsTheBlockContract) {
  test::expect_block_contract(
      {runtime::Stream::cpu("emulated"), detail::cuda_block_forward, detail::cuda_block_backward,
       detail::cuda_block_delta, detail::cuda_merge, detail::cuda_apply_sinks,
       detail::cuda_sinks_backward},
      true);
}

}  // namespace
}  // namespace longhaul::attention
