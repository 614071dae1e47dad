#pragma once
// Times the CPU kernels of blocks and of linear attention against the FMA rate measured beside
// them.

#include <cstdint>
#include <vector>

#include "attention/block.h"
#include "attention/linear.h"
#include "attention/mask.h"

namespace longhaul::attention {

struct KernelCase {
  std::int64_t tokens = 4096, heads = 1, kv_heads = 1, dim = 64;
  bool causal = false;
  bool bf16 = false;
  int threads = 1;
  Scoring scoring{};  ///< but for the scale, which is 1/sqrt(dim)
};

/// One repeat. Flops count visible pairs: 4 D a pair forward, 10 D backward. One thread is timed by
/// its CPU clock, several by the wall clock.
struct KernelRates {
  double forward_seconds = 0, backward_seconds = 0;
  double forward_flops = 0, backward_flops = 0;  ///< a second
  double peak_flops = 0;  ///< fp32 FMA rate, mean of just before and just after
  double forward_ratio() const { return forward_flops / peak_flops; }
  double backward_ratio() const { return backward_flops / peak_flops; }
};

/// `repeats` measurements after one warm-up, on a CPU stream of its own.
std::vector<KernelRates> measure_block_kernels(const KernelCase& which, int repeats);

struct LinearKernelCase {
  Recurrence recurrence{};  ///< but for the scale, which is 1/sqrt(dim)
  LinearShape shape{2048, 1, 1, 128, 128};
  int threads = 1;
};

/// Of sweep and sweep_backward. Flops are those of chunks of 64 tokens, d = dim and e = value dim,
/// a token and head: sum rule 2c(d+e) + 4de forward, 2c(3d+2e) + 10de backward; delta rule
/// 2c(2d+2e) + 6de, c(12d+10e) + 14de.
std::vector<KernelRates> measure_linear_kernels(const LinearKernelCase& which, int repeats);

}  // namespace longhaul::attention
