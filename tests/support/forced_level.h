#pragma once
// Tests that LONGHAUL_CPU_LEVEL runs at a level of instructions that this machine lacks skip, each
// with the reason.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "runtime/cpu_level.h"

namespace longhaul::test {

/// An executable of tests has one: testing::AddGlobalTestEnvironment(new ForcedLevel).
class ForcedLevel final : public testing::Environment {
 public:
  void SetUp() override {
    const char* wanted = std::getenv("LONGHAUL_CPU_LEVEL");
    if (wanted == nullptr) return;
    const runtime::CpuLevel best = runtime::best_cpu_level();
    for (const runtime::CpuLevel level : runtime::kCpuLevels) {
      if (name(level) != std::string_view(wanted) || level <= best) continue;
      // GoogleTest says so of a test, not of an environment; CTest looks for these words.
      std::puts("[  SKIPPED ] all tests");
      GTEST_SKIP() << "this machine has " << name(best) << " at most, not " << wanted;
    }
  }
};

}  // namespace longhaul::test
