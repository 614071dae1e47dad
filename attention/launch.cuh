#pragma once
// How the CUDA kernels of attention/ see their operands and are launched. Private to .cu files.
// (Tests also compile the kernels for the host.)

#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/cuda_check_impl.h"
#include "runtime/float_device.cuh"
#include "runtime/tensor.h"

namespace longhaul::attention::detail {

constexpr unsigned kAllLanes = 0xffffffffu;

/// Rows and heads of one operand, on the device. The last dim is contiguous.
template <class T>
struct Operand {
  T* data;
  std::int64_t row_stride, head_stride;
  __device__ T* head(std::int64_t h) const { return data + h * head_stride; }
};
template <class T>
Operand<const T> operand(const runtime::ConstTensorView& view) {
  return {view.as<T>(), view.stride(0), view.stride(1)};
}
inline Operand<float> output_operand(const runtime::TensorView& view) {
  return {view.as<float>(), view.stride(0), view.stride(1)};
}

/// Calls body(T()) for the activation dtype.
template <class Body>
void with_activation(runtime::DType dtype, const Body& body) {
  if (dtype == runtime::DType::float32) return body(float());
  if (dtype == runtime::DType::bfloat16) return body(runtime::BFloat16());
  runtime::fail(runtime::ExitCode::config,
                "the CUDA attention kernels take float32 or bfloat16, got ", runtime::name(dtype));
}

/// The block's dynamic shared memory.
__device__ inline float* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ float4 shared[];
  return reinterpret_cast<float*>(shared);
#else
  return test::emulated_shared_memory();
#endif
}

/// Devices before sm_90 have less than some kernels take. A plan for a machine without the device
/// is not held against it.
inline void require_shared_memory(const std::string& what, std::int64_t bytes,
                                  runtime::Device device, const char* advice) {
  if (device.index >= runtime::cuda_device_count()) return;
  int most = 0;
  LONGHAUL_CUDA_CHECK(
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index));
  if (bytes <= most) return;
  runtime::fail(runtime::ExitCode::config, what, " take ", bytes,
                " bytes of shared memory in the CUDA attention kernels; ",
                runtime::to_string(device), " has ", most, " a block: ", advice);
}

/// Of a grid's second dim.
inline void require_heads(std::int64_t heads) {
  constexpr std::int64_t kMaxHeads = 65535;
  if (heads <= kMaxHeads) return;
  runtime::fail(runtime::ExitCode::config, "the CUDA attention kernels take up to ", kMaxHeads,
                " heads, got ", heads);
}

/// Lets the kernel use `bytes` of shared memory (more than 48 KiB must be asked for) and launches
/// it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::int64_t shared_bytes,
            const runtime::Stream& stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = runtime::detail::cuda_stream(stream);
  LONGHAUL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared_bytes)));
  LONGHAUL_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

inline unsigned tiles(std::int64_t rows, int tile) {
  return static_cast<unsigned>((rows + tile - 1) / tile);
}

}  // namespace longhaul::attention::detail
