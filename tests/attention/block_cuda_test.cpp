// The CUDA block kernels against the fp64 reference: on a device, and their source on the host.
#include <gtest/gtest.h>

#include "attention/block_impl.h"
#include "tests/support/block_runner.h"
#include "tests/support/gpu.h"

namespace longhaul::attention {
namespace {

using runtime::Stream;

TEST(BlockCuda, KeepsTheBlockContract) {
  LONGHAUL_NEEDS_GPU();
  test::expect_block_contract({Stream::cuda("kernel", 0)}, false);
}

TEST(BlockCuda, ManyDocumentsLongSequence) {
  LONGHAUL_NEEDS_GPU();
  std::vector<Slice> documents;
  for (std::int64_t at = 0, length = 3; at < 4096;
       at += length, length = (length * 7 + 5) % 97 + 1) {
    const std::int64_t end = std::min<std::int64_t>(at + length, 4096);
    documents.push_back({at, end, at, end, -kUnbounded, 0});
  }
  for (const bool bf16 : {false, true}) {
    test::AttentionCase which{4096, 4096, 4, 2, 64, 64, documents};
    which.bf16 = bf16;
    which.fill(3);
    test::expect_matches_reference(which, test::run_block({Stream::cuda("kernel", 0)}, which));
  }
}

TEST(BlockCuda, RefusedOnACpuBuild) {
  if (test::no_gpu_reason().find("built without") == std::string::npos) {
    GTEST_SKIP() << "this is a CUDA build";
  }
  const Stream stream = Stream::cpu("kernel");
  EXPECT_THROW(detail::cuda_merge({}, {}, {}, {}, stream), runtime::Error);
}

}  // namespace
}  // namespace longhaul::attention
