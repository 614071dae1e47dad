#pragma once
// Stands in for runtime/cuda_check_impl.h where kernels run on the host.

#include <cuda_runtime.h>

#include "runtime/error.h"
#include "runtime/stream.h"

namespace longhaul::runtime::detail {
inline cudaStream_t cuda_stream(const Stream& stream) { return &stream; }
}  // namespace longhaul::runtime::detail

#define LONGHAUL_CUDA_CHECK(call) LONGHAUL_CHECK((call) == cudaSuccess, #call)
