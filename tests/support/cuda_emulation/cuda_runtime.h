#pragma once
// Enough of CUDA to run the project's kernels on the host: tests compile the .cu files as C++
// against this header in place of the toolkit's. A block's threads are fibers of one OS thread that
// switch at barriers and shuffles, so shared memory is static memory; blocks run one after another,
// the last one first; in every other block, so do the threads between barriers. A thread that reads
// what another one has yet to write is found where that order shows it; wrong indices, masks, sums
// and barriers that not all threads reach are found anyway.

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "runtime/stream.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};

extern thread_local dim3 threadIdx, blockIdx, gridDim, blockDim;

void __syncthreads();
void __syncwarp();

namespace longhaul::test {
/// The bits that the warp's lane gives; every lane of the warp calls it together.
std::uint64_t shuffle(std::uint64_t bits, unsigned lane);
}  // namespace longhaul::test

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  std::uint64_t bits = 0;
  static_assert(sizeof(T) <= sizeof(bits));
  std::memcpy(&bits, &value, sizeof(T));
  bits = longhaul::test::shuffle(bits, static_cast<unsigned>(lane) % 32);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int lanes) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return __shfl_sync(mask, value, lane >= lanes ? lane - lanes : lane);
}

inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

using cudaError_t = int;
using cudaStream_t = const longhaul::runtime::Stream*;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 97;
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 227 * 1024;  // of sm_90
  return cudaSuccess;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace longhaul::test {
/// Dynamic shared memory of the block that runs.
float* emulated_shared_memory();
/// Runs the kernel's body for every thread of the grid.
void emulate(const cudaLaunchConfig_t& config, const std::function<void()>& thread_body);
}  // namespace longhaul::test

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), int, int) {
  return cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  config->stream->cpu_task([config = *config, kernel, ... arguments = arguments] {
    longhaul::test::emulate(config, [&] { kernel(arguments...); });
  });
  return cudaSuccess;
}
