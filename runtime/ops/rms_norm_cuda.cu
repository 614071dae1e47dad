// RMSNorm on CUDA: a block a row forward; backward a block a chunk of rows, whose parts of the
// weight's gradient are added in chunk order.

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

template <int N, class T>
__device__ void apply_row(const T* x, const float* weight, float inverse, T* y, std::int64_t h) {
  for (std::int64_t i = threadIdx.x * N; i < h; i += blockDim.x * N) {
    float values[N], weights[N];
    load(x + i, values);
    load(weight + i, weights);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = normed(values[j], inverse, weights[j]);
    store(values, y + i);
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const T* x, const float* weight, double eps, T* y, float* inv_rms,
                std::int64_t rows, std::int64_t h) {
  __shared__ float inverse;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* in = x + row * h;
    double sum = 0;
    for (std::int64_t i = threadIdx.x * N; i < h; i += blockDim.x * N) {
      float values[N];
      load(in + i, values);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += static_cast<double>(values[j]) * values[j];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      inverse = static_cast<float>(1.0 / sqrt(sum / static_cast<double>(h) + eps));
      inv_rms[row] = inverse;
    }
    __syncthreads();
    apply_row<N>(in, weight, inverse, y + row * h, h);
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    norm_apply_kernel(const T* x, const float* weight, const float* inv_rms, T* y,
                      std::int64_t rows, std::int64_t h) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    apply_row<N>(x + row * h, weight, inv_rms[row], y + row * h, h);
}

/// Where a chunk's sum of column c lies: neighbours of a pack lie apart, those of a warp together.
__device__ inline std::int64_t slot(std::int64_t c, int pack, std::int64_t h) {
  return c % pack * (h / pack) + c / pack;
}

struct NormBackward {
  const float *weight, *inv_rms, *dy;
  double* partial;  // [chunks, h]: sums over a chunk's rows of dy x inv_rms, by slot
  std::int64_t rows, h, chunk_rows;
};

/// A block's chunk goes by groups of a row a warp: the warps find their rows' pulls, then the
/// threads go through the group by columns, while its rows are still in the cache.
template <int N, bool kAdd, class T>
__global__ void __launch_bounds__(kThreads)
    norm_backward_kernel(const T* x, T* dx, const NormBackward in) {
  __shared__ float pulls[kWarps], inverses[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t begin = blockIdx.x * in.chunk_rows;
  const std::int64_t end = min(in.rows, begin + in.chunk_rows);
  double* partial = in.partial + blockIdx.x * in.h;
  for (std::int64_t group = begin; group < end; group += kWarps) {
    const std::int64_t row = group + warp;
    if (row < end) {
      double dot = 0;
      for (std::int64_t i = lane * N; i < in.h; i += 32 * N) {
        float values[N], weights[N], slopes[N];
        load(x + row * in.h + i, values);
        load(in.weight + i, weights);
        load(in.dy + row * in.h + i, slopes);
#pragma unroll
        for (int j = 0; j < N; ++j) dot += static_cast<double>(weights[j] * slopes[j]) * values[j];
      }
      dot = warp_sum(dot);
      if (lane == 0) {
        const double inverse = in.inv_rms[row];
        inverses[warp] = in.inv_rms[row];
        pulls[warp] = static_cast<float>(dot * inverse * inverse / static_cast<double>(in.h));
      }
    }
    __syncthreads();
    const int count = static_cast<int>(min(static_cast<std::int64_t>(kWarps), end - group));
    for (std::int64_t i = threadIdx.x * N; i < in.h; i += blockDim.x * N) {
      float weights[N];
      load(in.weight + i, weights);
      double sums[N];
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] = group == begin ? 0 : partial[slot(i + j, N, in.h)];
      for (int r = 0; r < count; ++r) {
        const std::int64_t at = (group + r) * in.h + i;
        float values[N], slopes[N], gradients[N] = {};
        load(x + at, values);
        load(in.dy + at, slopes);
        if constexpr (kAdd) load(dx + at, gradients);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          gradients[j] += norm_gradient(values[j], inverses[r], weights[j], slopes[j], pulls[r]);
          sums[j] += static_cast<double>(slopes[j] * (values[j] * inverses[r]));
        }
        store(gradients, dx + at);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) partial[slot(i + j, N, in.h)] = sums[j];
    }
    __syncthreads();  // pulls and inverses have been read
  }
}

/// dweight += the chunks' sums: a warp adds an eighth of the chunks in order, the first one the
/// warps' sums.
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(const double* partial, std::int64_t chunks, int pack, float* dweight,
                      std::int64_t h) {
  __shared__ double of_warp[kWarps][32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t each = (chunks + kWarps - 1) / kWarps;
  for (std::int64_t base = blockIdx.x * std::int64_t{32}; base < h;
       base += gridDim.x * std::int64_t{32}) {
    const std::int64_t at = base + lane;
    double sum = 0;
    for (std::int64_t chunk = warp * each; chunk < min(chunks, (warp + 1) * each) && at < h;
         ++chunk)
      sum += partial[chunk * h + at];
    __syncthreads();  // the sums of the columns before have been read
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || at >= h) continue;
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += of_warp[w][lane];
    const std::int64_t groups = h / pack;
    dweight[at % groups * pack + at / groups] += static_cast<float>(total);
  }
}

/// Rows of a chunk: they follow from the number of rows alone, so the sums do.
std::int64_t rows_of_chunk(std::int64_t rows) {
  constexpr std::int64_t kChunks = 512;
  const std::int64_t each = (rows + kChunks - 1) / kChunks;
  return std::max<std::int64_t>(32, (each + kWarps - 1) / kWarps * kWarps);
}

}  // namespace

void cuda_rms_norm(ConstTensorView x, ConstTensorView weight, double eps, TensorView y,
                   TensorView inv_rms, const Stream& stream) {
  const std::int64_t rows = x.size(0), h = x.size(1);
  if (rows == 0) return;
  with_activation("rms_norm", x.dtype(), [&]<class T>() {
    with_count(aligned_rows(h, x.data(), weight.data(), y.data()), [&](auto count) {
      launch(norm_kernel<count(), T>, blocks_for(rows, 1), threads_for(h / count()), stream,
             x.as<T>(), weight.as<float>(), eps, y.as<T>(), inv_rms.as<float>(), rows, h);
    });
  });
}

void cuda_rms_norm_apply(ConstTensorView x, ConstTensorView weight, ConstTensorView inv_rms,
                         TensorView y, const Stream& stream) {
  const std::int64_t rows = x.size(0), h = x.size(1);
  if (rows == 0) return;
  with_activation("rms_norm_apply", x.dtype(), [&]<class T>() {
    with_count(aligned_rows(h, x.data(), weight.data(), y.data()), [&](auto count) {
      launch(norm_apply_kernel<count(), T>, blocks_for(rows, 1), threads_for(h / count()), stream,
             x.as<T>(), weight.as<float>(), inv_rms.as<float>(), y.as<T>(), rows, h);
    });
  });
}

void cuda_rms_norm_backward(const RmsNormBackwardInputs& inputs, TensorView dx, Write write_dx,
                            TensorView dweight, const Stream& stream) {
  const std::int64_t rows = inputs.x.size(0), h = inputs.x.size(1);
  if (rows == 0 || h == 0) return;
  const std::int64_t chunk_rows = rows_of_chunk(rows),
                     chunks = (rows + chunk_rows - 1) / chunk_rows;
  const Buffer partial = stream.allocate(chunks * h * static_cast<std::int64_t>(sizeof(double)));
  const NormBackward in{inputs.weight.as<float>(),
                        inputs.inv_rms.as<float>(),
                        inputs.dy.as<float>(),
                        reinterpret_cast<double*>(partial.data()),
                        rows,
                        h,
                        chunk_rows};
  const bool packed =
      aligned_rows(h, inputs.x.data(), inputs.weight.data(), inputs.dy.data(), dx.data());
  with_activation("rms_norm_backward", inputs.x.dtype(), [&]<class T>() {
    with_count(packed, [&](auto count) {
      const auto kernel = write_dx == Write::add ? norm_backward_kernel<count(), true, T>
                                                 : norm_backward_kernel<count(), false, T>;
      launch(kernel, chunks, kThreads, stream, inputs.x.as<T>(), dx.as<T>(), in);
    });
  });
  launch(add_chunks_kernel, blocks_for(h, 32), kThreads, stream, in.partial, chunks,
         packed ? kPack : 1, dweight.as<float>(), h);
}

}  // namespace longhaul::runtime::ops::detail
