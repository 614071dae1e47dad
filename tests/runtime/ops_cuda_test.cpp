// The contract of operations and of copies on a CUDA device; every test skips without one.
#include <gtest/gtest.h>

#include "tests/support/gpu.h"
#include "tests/support/ops_cases.h"
#include "tests/support/tensor_contract.h"

namespace longhaul::test {
namespace {

class OpsOnADevice : public testing::TestWithParam<OpsCase> {};

TEST_P(OpsOnADevice, KeepTheContract) {
  LONGHAUL_NEEDS_GPU();
  const auto stream = runtime::Stream::cuda("ops", 0);
  GetParam().run(stream);
}

constexpr auto by_name = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(CudaRowwise, OpsOnADevice, testing::ValuesIn(rowwise_cases()), by_name);
INSTANTIATE_TEST_SUITE_P(CudaActivation, OpsOnADevice, testing::ValuesIn(activation_cases()),
                         by_name);
INSTANTIATE_TEST_SUITE_P(CudaUpdate, OpsOnADevice, testing::ValuesIn(loss_and_update_cases()),
                         by_name);
INSTANTIATE_TEST_SUITE_P(CudaMatmul, OpsOnADevice, testing::ValuesIn(matmul_cases()), by_name);

TEST(Cuda, CopiesSumsAndFillsKeepTheContract) {
  LONGHAUL_NEEDS_GPU();
  expect_tensor_contract({runtime::copy, runtime::accumulate, runtime::fill, runtime::copy_rows,
                          runtime::accumulate_rows},
                         runtime::Stream::cuda("ops", 0));
}

}  // namespace
}  // namespace longhaul::test
