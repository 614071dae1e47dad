// How a kernel is compiled once for each instruction set and chosen at run time, with Google's
// Highway. A source x_cpu.cpp of kernels begins
//
//     #undef HWY_TARGET_INCLUDE
//     #define HWY_TARGET_INCLUDE "attention/x_cpu.cpp"
//     #include "runtime/simd_cpu.h"         // includes this source again for each target
//
// and has its kernels between HWY_BEFORE_NAMESPACE() and HWY_AFTER_NAMESPACE(), in a namespace
// HWY_NAMESPACE; what is compiled once follows under `#if HWY_ONCE`, with HWY_EXPORT(f) and calls
// LONGHAUL_DISPATCH(f)(...). Headers of kernels (*_cpu.h) are included once for each target,
// so their guard is HWY_TARGET_TOGGLE's. Lambdas and OpenMP's regions take the target of the
// function around them from the pragma; std:: code in kernels stays AVX2.

// Ours are AVX2 (with x86-64-v3's neighbours, which do not include AES) and AVX-512.
#define HWY_DISABLE_PCLMUL_AES 1
#define HWY_DISABLED_TARGETS (~(HWY_AVX2 | HWY_AVX3))
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#ifndef LONGHAUL_RUNTIME_SIMD_CPU_H
#define LONGHAUL_RUNTIME_SIMD_CPU_H

#include "runtime/cpu_level.h"

namespace longhaul::runtime::detail {
/// Highway's choice is made by the level in use.
inline void choose_cpu_level() { cpu_level(); }
}  // namespace longhaul::runtime::detail

/// The function of the level in use.
#define LONGHAUL_DISPATCH(function) \
  (::longhaul::runtime::detail::choose_cpu_level(), HWY_DYNAMIC_DISPATCH(function))

#endif  // LONGHAUL_RUNTIME_SIMD_CPU_H
