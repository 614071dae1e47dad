// The gradient's norm, AdamW and random numbers on CUDA.

#include <cfloat>
#include <limits>

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/normals_impl.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

/// A block a chunk. Which thread sums what does not depend on how the values are loaded, so a
/// chunk's bits do not depend on where it lies.
template <int N>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const float* values, std::int64_t n, double* sums, std::int64_t chunks) {
  for (std::int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const std::int64_t end = min(n, (chunk + 1) * kNormChunk);
    double sum = 0;
    for (std::int64_t i = chunk * kNormChunk + threadIdx.x * kPack; i < end;
         i += blockDim.x * kPack) {
      float pack[kPack] = {};
      if (N == kPack && i + kPack <= end) {
        load(values + i, pack);
      } else {
        for (int j = 0; j < kPack && i + j < end; ++j) pack[j] = values[i + j];
      }
#pragma unroll
      for (int j = 0; j < kPack; ++j) sum += static_cast<double>(pack[j]) * pack[j];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[chunk] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    norm_kernel(const double* sums, std::int64_t chunks, double* norm) {
  double sum = 0;
  for (std::int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) sum += sums[chunk];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

__global__ void clip_kernel(const double* norm, double max_norm, double* factor) {
  if (threadIdx.x > 0) return;
  const double value = *norm;
  *factor = !(value <= DBL_MAX) ? NAN : max_norm > 0 && value > max_norm ? max_norm / value : 1.0;
}

struct AdamWMemory {
  const float* gradient;
  const double* factor;
  float *value, *first, *second;
  BFloat16* rounded;  // null: there is none
};

/// Four elements a thread, so that a warp reads and writes whole lines in each access.
constexpr int kAdamWPack = 4;

__global__ void __launch_bounds__(kThreads, 6)
    adamw_kernel(const AdamWMemory at, const AdamWUpdate update, std::int64_t n, bool packed) {
  const double factor = *at.factor;
  if (!(fabs(factor) <= DBL_MAX)) return;
  const auto slope_factor = static_cast<float>(factor);
  for_each_pack<kAdamWPack>(n, packed, [&](std::int64_t i, auto count) {
    float slopes[count()], values[count()], first[count()], second[count()];
    load(at.gradient + i, slopes);
    load(at.value + i, values);
    load(at.first + i, first);
    load(at.second + i, second);
#pragma unroll
    for (int j = 0; j < count(); ++j)
      update.apply(slopes[j] * slope_factor, values[j], first[j], second[j]);
    store(values, at.value + i);
    store(first, at.first + i);
    store(second, at.second + i);
    if (at.rounded != nullptr) store(values, at.rounded + i);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    normal_kernel(T* values, std::int64_t n, double mean, double stddev, RandomKey key,
                  std::int64_t first_element) {
  const std::int64_t first_block = first_element / 4, last_block = (first_element + n + 3) / 4;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t block =
           first_block + static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       block < last_block; block += step) {
    const Four drawn = normals(key, static_cast<std::uint64_t>(block));
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const std::int64_t at = block * 4 + lane - first_element;
      if (at >= 0 && at < n)
        store_float(static_cast<float>(mean + stddev * drawn.at[lane]), values[at]);
    }
  }
}

}  // namespace

void cuda_squares_by_chunk(ConstTensorView values, TensorView sums, const Stream& stream) {
  const std::int64_t chunks = sums.elements();
  if (chunks == 0) return;
  with_count(aligned(values.data()), [&](auto count) {
    launch(squares_kernel<count()>, blocks_for(chunks, 1), kThreads, stream, values.as<float>(),
           values.elements(), sums.as<double>(), chunks);
  });
}

void cuda_norm_of_chunks(ConstTensorView sums, TensorView norm, const Stream& stream) {
  launch(norm_kernel, 1, kThreads, stream, sums.as<double>(), sums.elements(), norm.as<double>());
}

void cuda_clip_factor(ConstTensorView norm, double max_norm, std::int64_t, TensorView factor,
                      const Stream& stream) {
  launch(clip_kernel, 1, 32, stream, norm.as<double>(), max_norm, factor.as<double>());
}

void cuda_adamw(const AdamWFactors& factors, ConstTensorView gradient,
                ConstTensorView gradient_factor, const AdamWState& state, const Stream& stream) {
  const std::int64_t n = state.value.elements();
  if (n == 0) return;
  const AdamWMemory at{gradient.as<float>(),
                       gradient_factor.as<double>(),
                       state.value.as<float>(),
                       state.first_moment.as<float>(),
                       state.second_moment.as<float>(),
                       state.rounded.data() == nullptr ? nullptr : state.rounded.as<BFloat16>()};
  const bool packed = aligned(at.gradient, at.value, at.first, at.second, at.rounded);
  // As many blocks as there is work: those that run at a time lie side by side in memory, and the
  // last ones leave no multiprocessor idle for long. A grid may have 2^31 - 1.
  const std::int64_t each = packed ? kThreads * kAdamWPack : kThreads;
  const std::int64_t blocks =
      std::min<std::int64_t>((n + each - 1) / each, std::numeric_limits<std::int32_t>::max());
  launch(adamw_kernel, blocks, kThreads, stream, at, AdamWUpdate(factors), n, packed);
}

void cuda_fill_normal(TensorView values, double mean, double stddev, RandomKey key,
                      std::int64_t first_element, const Stream& stream) {
  const std::int64_t n = values.elements();
  if (n == 0) return;
  with_activation("fill_normal", values.dtype(), [&]<class T>() {
    launch(normal_kernel<T>, blocks_for(n / 4 + 2, kThreads), kThreads, stream, values.as<T>(), n,
           mean, stddev, key, first_element);
  });
}

}  // namespace longhaul::runtime::ops::detail
