// The operations that options of a block need, on the CPU.
#include <gtest/gtest.h>

#include <string>

#include "tests/support/ops_cases.h"

namespace longhaul::test {
namespace {

class OpsOfBlocks : public testing::TestWithParam<OpsCase> {};

TEST_P(OpsOfBlocks, KeepTheContract) {
  for (const int threads : {1, 2}) GetParam().run(runtime::Stream::cpu("ops", threads));
}

INSTANTIATE_TEST_SUITE_P(Cpu, OpsOfBlocks, testing::ValuesIn(activation_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace longhaul::test
