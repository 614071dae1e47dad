#pragma once
// Which instructions the CPU's kernels use. Code is compiled for x86-64-v3; what is faster with
// more is compiled again for more, and this says which to run.

#include <string_view>

namespace longhaul::runtime {

/// Each has the instructions of those before it.
enum class CpuLevel : unsigned char {
  avx2,    ///< x86-64-v3: AVX2 and FMA
  avx512,  ///< AVX-512 F, CD, BW, DQ and VL
  amx      ///< AMX tiles of bfloat16, beside AVX-512
};
inline constexpr CpuLevel kCpuLevels[] = {CpuLevel::avx2, CpuLevel::avx512, CpuLevel::amx};
/// "avx2", "avx512", "amx".
std::string_view name(CpuLevel level);

/// The highest level of this machine that the system lets this process use. Throws Error(launch) on
/// a CPU without AVX2 and FMA.
CpuLevel best_cpu_level();

/// The level in use: LONGHAUL_CPU_LEVEL's, by name, or the best. Decided at the first call. Throws
/// Error(launch) for a name that is none, and for a level that this machine lacks.
CpuLevel cpu_level();

/// For tests and benchmarks, while no kernel runs: the level in use from here on, whether or not
/// the machine has it. What was planned before keeps its own.
void set_cpu_level(CpuLevel level);

}  // namespace longhaul::runtime
