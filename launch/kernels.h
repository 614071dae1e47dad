#pragma once
// Which kernels a run's attention takes on CUDA, told before it runs and without a device.

#include <string>

#include "attention/block_plan.h"
#include "launch/memory.h"

namespace longhaul::launch {

/// A line for each kind of attention layer and scheme: the share of visible pairs by what computes
/// them, and why our exact kernels do where they do. Of the sequences that stand for all, on some
/// of the ranks. Throws Error(config) where cuDNN is demanded and cannot.
std::string kernels_text(const MemoryQuestion& question, attention::Kernels kernels,
                         bool deterministic);

}  // namespace longhaul::launch
