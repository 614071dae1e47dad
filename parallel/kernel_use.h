#pragma once
// Which kernels a call's blocks take on CUDA: known without a device.

#include <cstdint>
#include <map>
#include <string>

#include "attention/sdpa_plan.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

struct KernelUse {
  struct Paths {
    attention::KernelShares pairs;  ///< of each query head
    std::int64_t calls = 0;         ///< of cuDNN
    /// Pairs of the exact kernels by why they serve.
    std::map<std::string, std::int64_t> why_exact = {};
  };
  Paths forward, backward;
  KernelUse& operator+=(const KernelUse& other);
};

/// Of one rank, both ways of a call under inputs.scheme; inputs.direction is not read. Throws
/// Error(config) where cuDNN is demanded and cannot.
KernelUse kernel_use(const SchemeInputs& inputs, int rank, const attention::Scoring& scoring,
                     const attention::BlockPlace& place);

}  // namespace longhaul::parallel
