// RMSNorm on CUDA: a warp a row forward; backward a block a chunk of rows, whose parts of the
// weight's gradient are added in chunk order. What a thread takes of a row first stays in its
// registers until it is used again; what wider rows have beyond that is read twice.

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

/// N elements as they lie in memory: bfloat16 takes half the registers of its values.
template <int N, class T>
struct Held {
  Sixteen<std::uint32_t> words[N * static_cast<int>(sizeof(T)) / 16] = {};

  __device__ void take(const T* from) {
#pragma unroll
    for (int i = 0; i < N * static_cast<int>(sizeof(T)) / 16; ++i)
      words[i] = reinterpret_cast<const Sixteen<std::uint32_t>*>(from)[i];
  }
  __device__ void values(float (&to)[N]) const {
    constexpr int kOfWord = 4 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const std::uint32_t word = words[i / (4 * kOfWord)].at[i / kOfWord % 4];
      if constexpr (kOfWord == 1) {
        to[i] = __uint_as_float(word);
      } else {
        to[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
      }
    }
  }
};
template <class T>
struct Held<1, T> {
  float value = 0;
  __device__ void take(const T* from) { value = load_float(*from); }
  __device__ void values(float (&to)[1]) const { to[0] = value; }
};

/// What a norm multiplies by.
struct Factors {
  const float* values;
  float offset;

  /// factors <- a pack of them, from column i on.
  template <int N>
  __device__ void take(std::int64_t i, float (&factors)[N]) const {
    load(values + i, factors);
#pragma unroll
    for (int j = 0; j < N; ++j) factors[j] = offset + factors[j];
  }
};

/// sum += the squares of a pack's values, in double.
template <int N>
__device__ void add_squares(const float (&values)[N], double& sum) {
#pragma unroll
  for (int j = 0; j < N; ++j) sum += static_cast<double>(values[j]) * values[j];
}

/// y[i...] = a pack's values, normed.
template <int N, class T>
__device__ void apply_pack(float (&values)[N], const Factors& weight, float inverse, T* y,
                           std::int64_t i) {
  float weights[N];
  weight.take(i, weights);
#pragma unroll
  for (int j = 0; j < N; ++j) values[j] = normed(values[j], inverse, weights[j]);
  store(values, y + i);
}

/// Without y: inv_rms alone.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const T* x, const Factors weight, double eps, T* y, float* inv_rms,
                std::int64_t rows, std::int64_t h) {
  constexpr int kPacks = 8;  // of a lane, that stay in its registers
  constexpr std::int64_t kStep = 32 * N;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t row = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / 32; row < rows;
       row += step) {
    const T* in = x + row * h;
    T* out = y + row * h;
    Held<N, T> held[kPacks];
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const std::int64_t i = pack * kStep + lane * N;
      if (i < h) held[pack].take(in + i);
    }
    double sum = 0;
    float values[N];
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      if (pack * kStep + lane * N >= h) break;
      held[pack].values(values);
      add_squares(values, sum);
    }
    for (std::int64_t i = kPacks * kStep + lane * N; i < h; i += kStep) {
      load(in + i, values);
      add_squares(values, sum);
    }
    const float inverse = static_cast<float>(
        1.0 / sqrt(warp_sum(sum) / static_cast<double>(h) + eps));  // the same on all lanes
    if (lane == 0) inv_rms[row] = inverse;
    if (y == nullptr) continue;
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      const std::int64_t i = pack * kStep + lane * N;
      if (i >= h) break;
      held[pack].values(values);
      apply_pack(values, weight, inverse, out, i);
    }
    for (std::int64_t i = kPacks * kStep + lane * N; i < h; i += kStep) {
      load(in + i, values);
      apply_pack(values, weight, inverse, out, i);
    }
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    norm_apply_kernel(const T* x, const Factors weight, const float* inv_rms, T* y,
                      std::int64_t rows, std::int64_t h) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (std::int64_t i = threadIdx.x * N; i < h; i += blockDim.x * N) {
      float values[N];
      load(x + row * h + i, values);
      apply_pack(values, weight, inv_rms[row], y + row * h, i);
    }
  }
}

/// Where a chunk's sum of column c lies: neighbours of a pack lie apart, those of a warp together.
__device__ inline std::int64_t slot(std::int64_t c, int pack, std::int64_t h) {
  return c % pack * (h / pack) + c / pack;
}

struct NormBackward {
  Factors weight;
  const float *inv_rms, *dy;
  double* partial;  // [chunks, h]: sums over a chunk's rows of dy x inv_rms, by slot
  std::int64_t rows, h, chunk_rows;
};

constexpr int kTogether = 2;        // rows that a block goes through at a time
constexpr int kBackwardBlocks = 3;  // of a multiprocessor, where the registers of a thread allow it

/// A pack of x and dy in each of some rows.
template <int N, class T>
struct HeldRows {
  Held<N, T> x[kTogether];
  Held<N, float> dy[kTogether];

  /// From element `at` of the first row on. Of `count` rows.
  __device__ void take(const T* from_x, const float* from_dy, std::int64_t at, std::int64_t h,
                       int count) {
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      if (r >= count) break;
      x[r].take(from_x + at + r * h);
      dy[r].take(from_dy + at + r * h);
    }
  }
  /// dots[r] += weight dy x of the pack, in double.
  __device__ void add_dots(const float (&weights)[N], int count, double (&dots)[kTogether]) const {
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      if (r >= count) break;
      float values[N], slopes[N];
      x[r].values(values);
      dy[r].values(slopes);
#pragma unroll
      for (int j = 0; j < N; ++j)
        dots[r] += static_cast<double>(weights[j] * slopes[j]) * values[j];
    }
  }
};

/// Of the rows taken together.
struct Pulls {
  float pull[kTogether], inverse[kTogether];
};
/// dots summed over the block's threads -> every thread's pulls. One barrier: `sums` alternates
/// between two calls.
__device__ inline Pulls pulls_of(const double (&dots)[kTogether], double (&sums)[kTogether][kWarps],
                                 const NormBackward& in, std::int64_t row, int count) {
  static_assert(32 % (kTogether * kWarps) == 0, "a lane for each sum");
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int mine = lane / kWarps % kTogether;  // of the rows: neighbours share one
  const float inverse = mine < count ? in.inv_rms[row + mine] : 0.0f;
#pragma unroll
  for (int r = 0; r < kTogether; ++r) {
    const double dot = warp_sum(dots[r]);
    if (lane == 0) sums[r][warp] = dot;
  }
  __syncthreads();
  // Each adds up its row's in the same order.
  double dot = sums[mine][lane % kWarps];
#pragma unroll
  for (int lanes = kWarps / 2; lanes > 0; lanes /= 2) dot += __shfl_xor_sync(kAllLanes, dot, lanes);
  const double wide = inverse;
  const auto pull = static_cast<float>(dot * wide * wide / static_cast<double>(in.h));
  Pulls of;
#pragma unroll
  for (int r = 0; r < kTogether; ++r) {
    of.pull[r] = __shfl_sync(kAllLanes, pull, r * kWarps);
    of.inverse[r] = __shfl_sync(kAllLanes, inverse, r * kWarps);
  }
  return of;
}

/// dx of a pack in each of the rows, and their terms added to the columns' sums in order of rows.
template <int N, bool kAdd, class T>
__device__ void write_rows(const HeldRows<N, T>& held, const Held<N, T> (&old)[kTogether],
                           const float (&weights)[N], const Pulls& of, T* dx, std::int64_t at,
                           std::int64_t h, int count, double (&sums)[N]) {
#pragma unroll
  for (int r = 0; r < kTogether; ++r) {
    if (r >= count) break;
    float values[N], slopes[N], gradients[N] = {};
    held.x[r].values(values);
    held.dy[r].values(slopes);
    if constexpr (kAdd) old[r].values(gradients);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      gradients[j] += norm_gradient(values[j], of.inverse[r], weights[j], slopes[j], of.pull[r]);
      sums[j] += static_cast<double>(slopes[j] * (values[j] * of.inverse[r]));
    }
    store(gradients, dx + at + r * h);
  }
}
/// What lies at dx, where it is added to.
template <int N, bool kAdd, class T>
__device__ void take_old(const T* dx, std::int64_t at, std::int64_t h, int count,
                         Held<N, T> (&old)[kTogether]) {
  if constexpr (kAdd) {
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      if (r >= count) break;
      old[r].take(dx + at + r * h);
    }
  }
}

/// A block takes a few rows of its chunk at a time, a thread the same columns of all of them: first
/// the rows' pulls, then dx and the columns' sums. All that a row of kThreads packs needs is read
/// once, before the pulls are known; kWide: there are longer ones.
template <int N, bool kAdd, bool kWide, class T>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks - (kWide || sizeof(T) > 2 ? 1 : 0))
    norm_backward_kernel(const T* x, T* dx, const NormBackward in) {
  __shared__ double of_warps[2][kTogether][kWarps];
  const std::int64_t begin = blockIdx.x * in.chunk_rows;
  const std::int64_t end = min(in.rows, begin + in.chunk_rows);
  double* partial = in.partial + blockIdx.x * in.h;
  const std::int64_t first = threadIdx.x * N;
  constexpr std::int64_t kStep = kThreads * N;
  float weights[N] = {};
  if (first < in.h) in.weight.take(first, weights);
  double sums[N] = {};
  int turn = 0;
  for (std::int64_t row = begin; row < end; row += kTogether, turn ^= 1) {
    const int count = static_cast<int>(min(static_cast<std::int64_t>(kTogether), end - row));
    const std::int64_t at = row * in.h;
    HeldRows<N, T> held;
    Held<N, T> old[kTogether];
    double dots[kTogether] = {};
    if (first < in.h) {
      held.take(x, in.dy, at + first, in.h, count);
      take_old<N, kAdd>(dx, at + first, in.h, count, old);
      held.add_dots(weights, count, dots);
    }
    for (std::int64_t i = first + kStep; kWide && i < in.h; i += kStep) {
      float more_weights[N];
      in.weight.take(i, more_weights);
      HeldRows<N, T> more;
      more.take(x, in.dy, at + i, in.h, count);
      more.add_dots(more_weights, count, dots);
    }
    const Pulls of = pulls_of(dots, of_warps[turn], in, row, count);
    if (first < in.h)
      write_rows<N, kAdd>(held, old, weights, of, dx, at + first, in.h, count, sums);
    for (std::int64_t i = first + kStep; kWide && i < in.h; i += kStep) {
      float more_weights[N];
      in.weight.take(i, more_weights);
      double more_sums[N];
#pragma unroll
      for (int j = 0; j < N; ++j) more_sums[j] = row == begin ? 0 : partial[slot(i + j, N, in.h)];
      HeldRows<N, T> more;
      Held<N, T> more_old[kTogether];
      more.take(x, in.dy, at + i, in.h, count);
      take_old<N, kAdd>(dx, at + i, in.h, count, more_old);
      write_rows<N, kAdd>(more, more_old, more_weights, of, dx, at + i, in.h, count, more_sums);
#pragma unroll
      for (int j = 0; j < N; ++j) partial[slot(i + j, N, in.h)] = more_sums[j];
    }
  }
  if (first < in.h) {
#pragma unroll
    for (int j = 0; j < N; ++j) partial[slot(first + j, N, in.h)] = sums[j];
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

Factors factors_of(const NormWeight& weight) { return {weight.values.as<float>(), weight.offset}; }

/// Rows of a chunk: they follow from the number of rows alone, so the sums do.
std::int64_t rows_of_chunk(std::int64_t rows) {
  constexpr std::int64_t kChunks = 132 * kBackwardBlocks;  // all of the largest device's at once
  const std::int64_t each = (rows + kChunks - 1) / kChunks;
  return std::max<std::int64_t>(32, (each + kTogether - 1) / kTogether * kTogether);
}

}  // namespace

void cuda_rms_norm(ConstTensorView x, const NormWeight& weight, double eps, TensorView y,
                   TensorView inv_rms, const Stream& stream) {
  const std::int64_t rows = x.size(0), h = x.size(1);
  if (rows == 0) return;
  with_activation("rms_norm", x.dtype(), [&]<class T>() {
    with_count(aligned_rows(h, x.data(), weight.values.data(), y.data()), [&](auto count) {
      launch(norm_kernel<count(), T>, blocks_for(rows, kWarps), kThreads, stream, x.as<T>(),
             factors_of(weight), eps, y.as<T>(), inv_rms.as<float>(), rows, h);
    });
  });
}

void cuda_inverse_rms(ConstTensorView x, double eps, TensorView inv_rms, const Stream& stream) {
  const std::int64_t rows = x.size(0), h = x.size(1);
  if (rows == 0) return;
  with_activation("inverse_rms", x.dtype(), [&]<class T>() {
    with_count(aligned_rows(h, x.data()), [&](auto count) {
      launch(norm_kernel<count(), T>, blocks_for(rows, kWarps), kThreads, stream, x.as<T>(),
             Factors{}, eps, static_cast<T*>(nullptr), inv_rms.as<float>(), rows, h);
    });
  });
}

void cuda_rms_norm_apply(ConstTensorView x, const NormWeight& weight, ConstTensorView inv_rms,
                         TensorView y, const Stream& stream) {
  const std::int64_t rows = x.size(0), h = x.size(1);
  if (rows == 0) return;
  with_activation("rms_norm_apply", x.dtype(), [&]<class T>() {
    with_count(aligned_rows(h, x.data(), weight.values.data(), y.data()), [&](auto count) {
      launch(norm_apply_kernel<count(), T>, blocks_for(rows, 1), threads_for(h / count()), stream,
             x.as<T>(), factors_of(weight), inv_rms.as<float>(), y.as<T>(), rows, h);
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
  const NormBackward in{factors_of(inputs.weight),
                        inputs.inv_rms.as<float>(),
                        inputs.dy.as<float>(),
                        reinterpret_cast<double*>(partial.data()),
                        rows,
                        h,
                        chunk_rows};
  const bool packed =
      aligned_rows(h, inputs.x.data(), inputs.weight.values.data(), inputs.dy.data(), dx.data());
  with_activation("rms_norm_backward", inputs.x.dtype(), [&]<class T>() {
    with_count(packed, [&](auto count) {
      constexpr int kOfThread = count();
      const bool wide = h > std::int64_t{kThreads} * kOfThread;
      const auto kernel = write_dx == Write::add
                              ? (wide ? norm_backward_kernel<kOfThread, true, true, T>
                                      : norm_backward_kernel<kOfThread, true, false, T>)
                              : (wide ? norm_backward_kernel<kOfThread, false, true, T>
                                      : norm_backward_kernel<kOfThread, false, false, T>);
      launch(kernel, chunks, kThreads, stream, inputs.x.as<T>(), dx.as<T>(), in);
    });
  });
  launch(add_chunks_kernel, blocks_for(h, 32), kThreads, stream, in.partial, chunks,
         packed ? kPack : 1, dweight.as<float>(), h);
}

}  // namespace longhaul::runtime::ops::detail
