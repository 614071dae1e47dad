#pragma once
// The rate of a large matrix product: what kernels are compared with.

#include <cstdint>

#include "launch/timing.h"
#include "runtime/dtype.h"

namespace longhaul::launch {

/// Of a square product, operands and result in one dtype.
struct GemmRate {
  std::int64_t size = 0;
  Spread seconds;
  double flops() const;             ///< of one product, a multiply-add counted as two
  double flops_per_second() const;  ///< at the median
};
/// 8,192 rows and columns on CUDA, 1,024 on the CPU; random normal elements.
GemmRate measure_gemm(runtime::DType dtype, const Repeats& repeats, const runtime::Stream& stream);

}  // namespace longhaul::launch
