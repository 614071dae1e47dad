#pragma once
// What an operation without a CUDA kernel says of a CUDA stream, in every build.

#include "runtime/stream.h"

namespace longhaul::runtime {

/// Throws Error(config) on a CUDA stream: "NAME has no CUDA kernel; use [device] kind = cpu".
void require_cpu(const char* name, const Stream& stream);

}  // namespace longhaul::runtime
