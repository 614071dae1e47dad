#include "runtime/cpu_level.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <mutex>

#define HWY_DISABLE_PCLMUL_AES 1
#define HWY_DISABLED_TARGETS (~(HWY_AVX2 | HWY_AVX3))
#include <hwy/highway.h>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

constexpr int kUndecided = -1;
std::atomic<int> level_in_use = kUndecided;
std::mutex deciding;

/// Linux gives a process the state of AMX's tiles on demand, once, for all of its threads.
bool tiles_are_granted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_bfloat16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBFloat16 = 1U << 22, kTiles = 1U << 24;
  return (d & kBFloat16) != 0 && (d & kTiles) != 0;
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

/// What LONGHAUL_CPU_LEVEL asks for, or the best.
CpuLevel decide() {
  const CpuLevel best = best_cpu_level();
  const char* wanted = std::getenv("LONGHAUL_CPU_LEVEL");
  if (wanted == nullptr || *wanted == 0) return best;
  for (const CpuLevel level : kCpuLevels) {
    if (name(level) != wanted) continue;
    if (level > best) {
      fail(ExitCode::launch, "LONGHAUL_CPU_LEVEL is ", wanted, ", and this machine has ",
           name(best), " at most; unset it, or name that");
    }
    return level;
  }
  fail(ExitCode::launch, "LONGHAUL_CPU_LEVEL is '", wanted, "'; expected avx2, avx512 or amx");
}

void use(CpuLevel level) {
  hwy::SetSupportedTargetsForTest(level == CpuLevel::avx2 ? HWY_AVX2 : HWY_AVX2 | HWY_AVX3);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  level_in_use = static_cast<int>(level);
}

}  // namespace

std::string_view name(CpuLevel level) {
  switch (level) {
    case CpuLevel::avx2:
      return "avx2";
    case CpuLevel::avx512:
      return "avx512";
    case CpuLevel::amx:
      return "amx";
  }
  return "?";
}

CpuLevel best_cpu_level() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    fail(ExitCode::launch, "this CPU lacks AVX2 and FMA; Longhaul needs an x86-64-v3 processor");
  if (!has_avx512()) return CpuLevel::avx2;
  return has_amx_bfloat16() && tiles_are_granted() ? CpuLevel::amx : CpuLevel::avx512;
}

CpuLevel cpu_level() {
  if (level_in_use == kUndecided) {
    const std::lock_guard lock(deciding);
    if (level_in_use == kUndecided) use(decide());
  }
  return static_cast<CpuLevel>(level_in_use.load());
}

void set_cpu_level(CpuLevel level) {
  const std::lock_guard lock(deciding);
  use(level);
}

}  // namespace longhaul::runtime
