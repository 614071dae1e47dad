#include "runtime/cpu_level.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "runtime/error.h"
#include "tests/support/forced_level.h"
#include "tests/support/process.h"

namespace longhaul::runtime {
namespace {

[[maybe_unused]] const auto* const environment =
    testing::AddGlobalTestEnvironment(new test::ForcedLevel);

/// Whether the system's own list of this CPU's flags has it.
bool listed(const std::string& flag) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("flags")) return (line + " ").find(" " + flag + " ") != std::string::npos;
  }
  return false;
}

TEST(CpuLevelOfTheMachine, IsWhatTheSystemLists) {
  const bool avx512 = listed("avx512f") && listed("avx512bw") && listed("avx512dq") &&
                      listed("avx512vl") && listed("avx512cd");
  const bool amx = avx512 && listed("amx_tile") && listed("amx_bf16");
  EXPECT_EQ(best_cpu_level() >= CpuLevel::avx512, avx512);
  EXPECT_EQ(best_cpu_level() == CpuLevel::amx, amx);  // no process is refused its tiles by default
}

TEST(CpuLevelOfTheMachine, IsSetAndNamed) {
  const CpuLevel before = cpu_level();
  for (const CpuLevel level : kCpuLevels) {
    set_cpu_level(level);
    EXPECT_EQ(cpu_level(), level);
  }
  set_cpu_level(before);
  EXPECT_EQ(name(CpuLevel::avx2), "avx2");
  EXPECT_EQ(name(CpuLevel::avx512), "avx512");
  EXPECT_EQ(name(CpuLevel::amx), "amx");
}

}  // namespace
}  // namespace longhaul::runtime
