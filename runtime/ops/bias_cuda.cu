// Biases on CUDA. Sums of columns: a block a chunk of rows, in double; then the chunks' sums in
// their order.

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

/// A block takes a row at a time.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(const float* bias, T* y, std::int64_t rows, std::int64_t m) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < m;
         i += static_cast<std::int64_t>(blockDim.x) * N) {
      float values[N], biases[N];
      load(y + row * m + i, values);
      load(bias + i, biases);
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] += biases[j];
      store(values, y + row * m + i);
    }
  }
}

/// partial[chunk, m] = the sums over the chunk's rows, in their order.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    sum_chunk_kernel(const T* dy, double* partial, std::int64_t rows, std::int64_t m,
                     std::int64_t chunk_rows) {
  const std::int64_t begin = blockIdx.x * chunk_rows, end = min(rows, begin + chunk_rows);
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < m;
       i += static_cast<std::int64_t>(blockDim.x) * N) {
    double sums[N] = {};
    for (std::int64_t row = begin; row < end; ++row) {
      float values[N];
      load(dy + row * m + i, values);
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] += static_cast<double>(values[j]);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) partial[blockIdx.x * m + i + j] = sums[j];
  }
}

/// dbias += the chunks' sums, a thread a column.
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(const double* partial, std::int64_t chunks, float* dbias, std::int64_t m) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < m;
       i += step) {
    double sum = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * m + i];
    dbias[i] += static_cast<float>(sum);
  }
}

}  // namespace

void cuda_add_bias(ConstTensorView bias, TensorView y, const Stream& stream) {
  const std::int64_t rows = y.size(0), m = y.size(1);
  if (y.elements() == 0) return;
  with_activation("add_bias", y.dtype(), [&]<class T>() {
    with_count(aligned_rows(m, bias.data(), y.data()), [&](auto count) {
      launch(add_bias_kernel<count(), T>, blocks_for(rows, 1), threads_for(m / count()), stream,
             bias.as<float>(), y.as<T>(), rows, m);
    });
  });
}

void cuda_bias_backward(ConstTensorView dy, TensorView dbias, const Stream& stream) {
  const std::int64_t rows = dy.size(0), m = dy.size(1);
  if (dy.elements() == 0) return;
  // Rows of a chunk follow from the number of rows alone, so the sums do.
  constexpr std::int64_t kChunks = 132 * 4;
  const std::int64_t chunk_rows = std::max<std::int64_t>(32, (rows + kChunks - 1) / kChunks),
                     chunks = (rows + chunk_rows - 1) / chunk_rows;
  const Buffer memory = stream.allocate(chunks * m * static_cast<std::int64_t>(sizeof(double)));
  auto* partial = reinterpret_cast<double*>(memory.data());
  with_activation("bias_backward", dy.dtype(), [&]<class T>() {
    with_count(aligned_rows(m, dy.data()), [&](auto count) {
      launch(sum_chunk_kernel<count(), T>, chunks, threads_for(m / count()), stream, dy.as<T>(),
             partial, rows, m, chunk_rows);
    });
  });
  launch(add_chunks_kernel, blocks_for(m, kThreads), kThreads, stream, partial, chunks,
         dbias.as<float>(), m);
}

}  // namespace longhaul::runtime::ops::detail
