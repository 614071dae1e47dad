#pragma once
// Checked CUDA calls. Private to .cu files and x_cuda.cpp files; no return code is dropped.

#include <cuda_runtime_api.h>

#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/stream.h"

namespace longhaul::runtime::detail {

/// Throws Error(memory) for an exhausted device, else Error(internal), with the call, the code's
/// name and text, the place and the rank.
void check_cuda(cudaError_t code, const char* call, const char* file, int line);

/// Every function that calls CUDA sets its device first: nothing relies on the thread's current
/// one.
void use_device(Device device);

/// Makes the stream's device current and gives its handle.
inline cudaStream_t cuda_stream(const Stream& stream) {
  use_device(stream.device());
  return static_cast<cudaStream_t>(stream.cuda_handle());
}

/// The result of a call whose failure cannot be reported: in a destructor, or after a worse error.
/// A sticky error comes back from the next checked call.
inline void in_destructor(cudaError_t) {}

}  // namespace longhaul::runtime::detail

#define LONGHAUL_CUDA_CHECK(call) \
  ::longhaul::runtime::detail::check_cuda((call), #call, __FILE__, __LINE__)
