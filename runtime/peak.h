#pragma once
// How fast the CPU multiplies and adds: what MFU and kernels' ratios are divided by.

#include <span>
#include <string_view>

#include "runtime/dtype.h"
#include "runtime/rate.h"

namespace longhaul::runtime {

/// What multiplies and adds, and from where.
enum class Unit : unsigned char {
  fma_avx2,           ///< float32, in registers
  fma_avx512,         ///< float32, in registers
  dot_avx512,         ///< bfloat16 products summed in float32, in registers (AVX512-BF16)
  tiles,              ///< the same by AMX, in tiles
  tiles_from_memory,  ///< by AMX, every tile of operands loaded from the first cache
};
inline constexpr Unit kUnits[] = {Unit::fma_avx2, Unit::fma_avx512, Unit::dot_avx512, Unit::tiles,
                                  Unit::tiles_from_memory};
/// "float32 FMA, AVX-512" and so on.
std::string_view name(Unit unit);
/// Whether this machine has it, whatever level is in use.
bool has(Unit unit);

/// Of our kernels at the level in use (cpu_level.h): for bfloat16 AMX's tiles where they are used,
/// else the FMA that float32 has.
Unit kernel_unit(DType dtype);
/// The fastest that libraries may use for a product of this dtype up to the level in use.
Unit product_unit(DType dtype);

/// Flops a second, a multiply-add counted as two: see measure_rate() in rate.h. Throws
/// Error(launch) where the machine lacks the unit.
Rate measure_peak(Unit unit, int threads, double seconds);

/// The median of kernel_unit(float32). Throws Error(launch) on a CPU without AVX2 and FMA.
double measure_fma_flops(int threads, double seconds);

}  // namespace longhaul::runtime
