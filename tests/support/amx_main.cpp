// GoogleTest's main for kernels on AMX tiles: the CPU's level is amx, and cases that do not say are
// in bfloat16. Where such kernels cannot run, every test is skipped.
#include <gtest/gtest.h>

#include <optional>

#include "tests/support/amx_emulator.h"
#include "tests/support/attention_case.h"

namespace longhaul::test {
namespace {

class OnTiles : public testing::Environment {
 public:
  void SetUp() override {
    if (const std::string reason = no_amx_reason(); !reason.empty()) GTEST_SKIP() << reason;
    level_.emplace();
    AttentionCase::bf16_unless_said = true;
  }
  void TearDown() override { level_.reset(); }

 private:
  std::optional<AmxLevel> level_;
};

}  // namespace
}  // namespace longhaul::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::AddGlobalTestEnvironment(new longhaul::test::OnTiles);
  return RUN_ALL_TESTS();
}
