#pragma once
// Tests that hold results in bfloat16 to float32's bounds.

#include <cstdlib>

#include "runtime/cpu_level.h"

namespace longhaul::test {

/// While it lives, nothing is computed on AMX tiles, which round weights to bfloat16: here, and in
/// programs started from here.
class WithoutTiles {
 public:
  WithoutTiles() : tiles_(runtime::cpu_level() == runtime::CpuLevel::amx) {
    if (!tiles_) return;
    runtime::set_cpu_level(runtime::CpuLevel::avx512);
    setenv("LONGHAUL_CPU_LEVEL", "avx512", 1);
  }
  ~WithoutTiles() {
    if (!tiles_) return;
    runtime::set_cpu_level(runtime::CpuLevel::amx);
    unsetenv("LONGHAUL_CPU_LEVEL");
  }
  WithoutTiles(const WithoutTiles&) = delete;
  WithoutTiles& operator=(const WithoutTiles&) = delete;

 private:
  const bool tiles_;
};

}  // namespace longhaul::test
