// The source of the operations' CUDA kernels, compiled for the host (support/cuda_emulation): the
// same arithmetic, indices and barriers, without a device. Matrix products, which are a library's
// on a device, are the CPU's here: that runs the cases themselves.
#include <gtest/gtest.h>

#include "runtime/ops/ops_impl.h"
#include "tests/support/ops_cases.h"

namespace longhaul::runtime::ops::detail {

bool on_cuda(const Stream&) { return true; }

void cuda_matmul(const MatrixOperand& a, const MatrixOperand& b, const MatrixOperand& addend,
                 TensorView c, std::int64_t leading_c, const Stream& stream) {
  cpu_matmul(a, b, addend, c, leading_c, stream);
}

}  // namespace longhaul::runtime::ops::detail

namespace longhaul::test {
namespace {

class OpsEmulated : public testing::TestWithParam<OpsCase> {};

TEST_P(OpsEmulated, KeepTheContract) {
  const auto stream = runtime::Stream::cpu("emulated");
  GetParam().run(stream);
}

constexpr auto by_name = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(Rowwise, OpsEmulated, testing::ValuesIn(rowwise_cases()), by_name);
INSTANTIATE_TEST_SUITE_P(Activation, OpsEmulated, testing::ValuesIn(activation_cases()), by_name);
INSTANTIATE_TEST_SUITE_P(Update, OpsEmulated, testing::ValuesIn(loss_and_update_cases()), by_name);
INSTANTIATE_TEST_SUITE_P(Matmul, OpsEmulated, testing::ValuesIn(matmul_cases()), by_name);

}  // namespace
}  // namespace longhaul::test
