#pragma once
// What CUDA kernels of runtime/ share: launches, packs of elements in 16-byte accesses, and sums
// over a block. Private to .cu files.
//
// A kernel over contiguous elements takes kPack of them at a time where addresses and sizes allow
// it, else one: the same body, written for Count<N>.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "runtime/cuda_check_impl.h"
#include "runtime/float_device.cuh"

namespace longhaul::runtime::detail {

constexpr int kThreads = 256;  ///< of a block, at most
constexpr int kWarps = kThreads / 32;
constexpr int kPack = 8;
constexpr unsigned kAllLanes = 0xffffffffu;
/// Enough to fill the largest device; the rest is the loops'.
constexpr std::int64_t kMaxBlocks = 132 * 16;

template <int N>
using Count = std::integral_constant<int, N>;

/// Enqueues the kernel. `blocks` and `threads` are at least 1.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, const Stream& stream,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = cuda_stream(stream);
  LONGHAUL_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

/// Blocks for `items` of which a block takes `each` at a time.
inline std::int64_t blocks_for(std::int64_t items, std::int64_t each) {
  return std::clamp<std::int64_t>((items + each - 1) / each, 1, kMaxBlocks);
}
/// Whole warps for `items`, one a thread.
inline int threads_for(std::int64_t items) {
  return static_cast<int>(std::clamp<std::int64_t>((items + 31) / 32 * 32, 32, kThreads));
}

/// Whether kPack elements at a time can be loaded and stored from these addresses on.
template <class... T>
bool aligned(const T*... data) {
  return (... && (reinterpret_cast<std::uintptr_t>(data) % 16 == 0));
}
/// The same in each of many rows of `size` elements.
template <class... T>
bool aligned_rows(std::int64_t size, const T*... data) {
  return size % kPack == 0 && aligned(data...);
}
/// Calls body(Count<kPack>()) or body(Count<1>()).
template <class Body>
void with_count(bool packed, const Body& body) {
  if (packed) return body(Count<kPack>());
  body(Count<1>());
}

/// N elements of one access, of at most 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) Access {
  static constexpr int kElements = N;
  T at[N];
};
template <class T>
using Sixteen = Access<T, 16 / static_cast<int>(sizeof(T))>;
/// The widest access that takes a part of N elements.
template <class T, int N>
using WidestAccess = Access<T, std::min(N, Sixteen<T>::kElements)>;

/// values <- N elements at `from`, which is aligned to 16 bytes unless N is 1.
template <int N, class T>
__device__ inline void load(const T* from, float (&values)[N]) {
  if constexpr (N == 1) {
    values[0] = load_float(*from);
  } else {
    using Part = WidestAccess<T, N>;
#pragma unroll
    for (int part = 0; part < N / Part::kElements; ++part) {
      const Part access = reinterpret_cast<const Part*>(from)[part];
#pragma unroll
      for (int i = 0; i < Part::kElements; ++i)
        values[part * Part::kElements + i] = load_float(access.at[i]);
    }
  }
}
template <int N, class T>
__device__ inline void store(const float (&values)[N], T* to) {
  if constexpr (N == 1) {
    store_float(values[0], *to);
  } else {
    using Part = WidestAccess<T, N>;
#pragma unroll
    for (int part = 0; part < N / Part::kElements; ++part) {
      Part access;
#pragma unroll
      for (int i = 0; i < Part::kElements; ++i)
        store_float(values[part * Part::kElements + i], access.at[i]);
      reinterpret_cast<Part*>(to)[part] = access;
    }
  }
}

/// Calls body(first element, Count<N>()) for this thread's elements of [0, n), all blocks together;
/// N is kAtATime where elements are `packed`, and 1.
template <int kAtATime = kPack, class Body>
__device__ inline void for_each_pack(std::int64_t n, bool packed, const Body& body) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t whole = packed ? n / kAtATime : 0;
  for (std::int64_t i = thread; i < whole; i += step) body(i * kAtATime, Count<kAtATime>());
  for (std::int64_t i = whole * kAtATime + thread; i < n; i += step) body(i, Count<1>());
}
/// Blocks for a kernel of for_each_pack().
inline std::int64_t blocks_for_packs(std::int64_t n, bool packed) {
  return blocks_for(n, packed ? kThreads * kPack : kThreads);
}

/// The same sum, in the same order, on every lane of the warp.
template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

/// The same sum, in the same order, on every thread of a block of whole warps. A barrier for what
/// came before and for what follows.
__device__ inline double block_sum(double value) {
  __shared__ double of_warp[kWarps];
  value = warp_sum(value);
  __syncthreads();  // an earlier call's sums have been read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += of_warp[warp];
  return sum;
}
/// As block_sum(). NaN does not count.
__device__ inline float block_max(float value) {
  __shared__ float of_warp[kWarps];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  float largest = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) largest = fmaxf(largest, of_warp[warp]);
  return largest;
}

}  // namespace longhaul::runtime::detail
