// The source of the kernels behind copy(), accumulate(), fill() and their like for lists of rows,
// compiled for the host (support/cuda_emulation).
#include <gtest/gtest.h>

#include "runtime/tensor_impl.h"
#include "tests/support/tensor_contract.h"

namespace longhaul::runtime::detail {

void cuda_copy(ConstTensorView src, TensorView dst, const Stream& stream) {
  cuda_copy_elements(src, dst, stream);
}

}  // namespace longhaul::runtime::detail

namespace longhaul::test {
namespace {

TEST(TensorEmulated, KeepsTheContract) {
  using namespace runtime::detail;
  expect_tensor_contract(
      {cuda_copy, cuda_accumulate, cuda_fill, cuda_copy_rows, cuda_accumulate_rows},
      runtime::Stream::cpu("emulated"));
}

}  // namespace
}  // namespace longhaul::test
