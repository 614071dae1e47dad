// Cross entropy on CUDA, a block a row, which goes through it by tiles: the largest logit and the
// sum of exponentials in one pass, the gradient in a second one. Sums are in double.

#include <cfloat>

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
#include "runtime/ops/formulas.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

using namespace runtime::detail;

/// The labels of a chunk's rows, in memory.
struct Rows {
  const std::int32_t* labels;
  const float* weights;  // null: every label weighs 1
  std::int64_t rows, vocabulary;

  /// Of the row's loss: 0 without a label, NaN where label or weight is none.
  __device__ double weight(std::int64_t row) const {
    const std::int32_t label = labels[row];
    if (label < -1 || label >= vocabulary) return NAN;
    if (label == -1) return 0;
    const double weight = weights == nullptr ? 1 : weights[row];
    return weight >= 0 && weight <= DBL_MAX ? weight : NAN;
  }
};

struct RowSums {
  float maximum;
  double exponentials;  // sum of e^(logit - maximum)
};

constexpr int kTilePacks = 4;  // of a thread, loaded together

/// A block's tile of a row begins at a multiple of this; a pack of N elements is a thread's.
template <int N>
constexpr std::int64_t kTileElements = std::int64_t{kThreads} * kTilePacks* N;

/// The first element of this thread's pack of the tile.
template <int N>
__device__ std::int64_t pack_begin(std::int64_t tile, int pack) {
  return tile + (kThreads * pack + static_cast<int>(threadIdx.x)) * N;
}

/// This thread's packs of a tile; -inf, which weighs nothing, past the row's end.
template <int N>
__device__ void load_tile(const float* row, std::int64_t tile, std::int64_t vocabulary,
                          float (&values)[kTilePacks][N]) {
#pragma unroll
  for (int pack = 0; pack < kTilePacks; ++pack) {
    const std::int64_t i = pack_begin<N>(tile, pack);
    if (i < vocabulary) {
      load(row + i, values[pack]);
    } else {
#pragma unroll
      for (float& value : values[pack]) value = -INFINITY;
    }
  }
}

/// The same sums on every thread. `beats` looks at each logit once: (index, value).
template <int N, class Beats>
__device__ RowSums row_sums(const float* logits, std::int64_t vocabulary, const Beats& beats) {
  // A finite start: e^(-inf - start) is 0, also where a thread sees nothing but -inf.
  float largest = -FLT_MAX;
  double sum = 0;
  for (std::int64_t tile = 0; tile < vocabulary; tile += kTileElements<N>) {
    float values[kTilePacks][N];
    load_tile(logits, tile, vocabulary, values);
    float of_tile = -INFINITY;
#pragma unroll
    for (const auto& pack : values) {
#pragma unroll
      for (const float value : pack) of_tile = fmaxf(of_tile, value);
    }
    if (of_tile > largest) {
      sum *= exp(static_cast<double>(largest) - static_cast<double>(of_tile));
      largest = of_tile;
    }
#pragma unroll
    for (int pack = 0; pack < kTilePacks; ++pack) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        sum += static_cast<double>(expf(values[pack][j] - largest));
        beats(pack_begin<N>(tile, pack) + j, values[pack][j]);
      }
    }
  }
  const float maximum = block_max(largest);
  sum *= exp(static_cast<double>(largest) - static_cast<double>(maximum));
  return {maximum, block_sum(sum)};
}

__device__ double row_loss(const RowSums& sums, float label_logit) {
  return log(sums.exponentials) +
         (static_cast<double>(sums.maximum) - static_cast<double>(label_logit));
}

/// weight * row loss into losses; dlogits, whose row begins where the row of logits does, becomes
/// scale * weight * (softmax - one-hot), times the slope of a cap; inverse = 1 / the cap.
template <int N, bool kCapped, class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* logits, const Rows labels, double scale, float inverse,
                    double* losses, T* dlogits, std::int64_t stride) {
  __shared__ float gradients[2];  // of e^(logit - maximum), and at the label
  for (std::int64_t row = blockIdx.x; row < labels.rows; row += gridDim.x) {
    const float* from = logits + row * labels.vocabulary;
    T* to = dlogits + row * stride;
    const double weight = labels.weight(row);
    const std::int32_t label = labels.labels[row];
    if (!(weight > 0)) {  // 0 or NaN, and so are the gradients
      float values[N];
#pragma unroll
      for (float& value : values) value = static_cast<float>(weight);
      for (std::int64_t i = threadIdx.x * N; i < labels.vocabulary; i += blockDim.x * N)
        store(values, to + i);
      if (threadIdx.x == 0) losses[row] = weight;
      continue;
    }
    const RowSums sums = row_sums<N>(from, labels.vocabulary, [](std::int64_t, float) {});
    if (threadIdx.x == 0) {
      const double loss = row_loss(sums, from[label]);
      losses[row] = weight * loss;
      gradients[0] = static_cast<float>(scale * weight / sums.exponentials);
      // p - 1 from the other side, so that a confident row keeps its digits: -(1 - e^-loss).
      gradients[1] = static_cast<float>(scale * weight * expm1(-loss));
      if constexpr (kCapped) gradients[1] *= softcap_slope(from[label], inverse);
    }
    __syncthreads();
    // Read before the barriers of the next row's sums, so before the next write.
    const float factor = gradients[0], at_label = gradients[1];
    for (std::int64_t tile = 0; tile < labels.vocabulary; tile += kTileElements<N>) {
      float values[kTilePacks][N];
      load_tile(from, tile, labels.vocabulary, values);
      // Narrower gradients of a tile lie over other threads' logits of this tile or of those
      // before, which have been read now; never over a later tile's.
      if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
#pragma unroll
      for (int pack = 0; pack < kTilePacks; ++pack) {
        const std::int64_t i = pack_begin<N>(tile, pack);
        if (i >= labels.vocabulary) continue;
        float(&of_pack)[N] = values[pack];
#pragma unroll
        for (float& value : of_pack) {
          const float slope = kCapped ? softcap_slope(value, inverse) : 1.0f;
          value = expf(value - sums.maximum) * factor * slope;
        }
        store(of_pack, to + i);
        if (i <= label && label < i + N) store_float(at_label, to[label]);
      }
    }
  }
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const float* logits, const Rows labels, double* losses, float* row_losses,
                   std::uint8_t* row_correct) {
  for (std::int64_t row = blockIdx.x; row < labels.rows; row += gridDim.x) {
    const float* of_row = logits + row * labels.vocabulary;
    const double weight = labels.weight(row);
    if (!(weight > 0)) {
      if (threadIdx.x == 0) {
        losses[row] = weight;
        row_losses[row] = static_cast<float>(weight);
        row_correct[row] = 0;
      }
      continue;
    }
    const std::int32_t label = labels.labels[row];
    const float at_label = of_row[label];
    bool first_largest = at_label == at_label;
    const RowSums sums = row_sums<N>(of_row, labels.vocabulary, [&](std::int64_t i, float value) {
      if (value > at_label || (value == at_label && i < label)) first_largest = false;
    });
    const bool beaten = block_max(first_largest ? 0.0f : 1.0f) > 0.0f;
    if (threadIdx.x > 0) continue;
    const double loss = row_loss(sums, at_label);
    losses[row] = weight * loss;
    row_losses[row] = static_cast<float>(loss);
    row_correct[row] = beaten ? 0 : 1;
  }
}

/// *sum += losses in order, so that chunks of rows give the bits of all rows at once.
__global__ void __launch_bounds__(kThreads)
    add_losses_kernel(const double* losses, std::int64_t rows, double* sum) {
  __shared__ double some[kThreads];
  double total = *sum;
  for (std::int64_t begin = 0; begin < rows; begin += kThreads) {
    const auto count = static_cast<int>(min(rows - begin, static_cast<std::int64_t>(kThreads)));
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) some[threadIdx.x] = losses[begin + threadIdx.x];
    __syncthreads();
    if (threadIdx.x > 0) continue;
    for (int i = 0; i < count; ++i) total += some[i];
  }
  if (threadIdx.x == 0) *sum = total;
}

Rows rows_of(const Labels& labels, std::int64_t vocabulary) {
  return {labels.tokens.as<std::int32_t>(),
          labels.weights.data() == nullptr ? nullptr : labels.weights.as<float>(),
          labels.tokens.size(0), vocabulary};
}

/// Runs kernel(logits, labels, losses of the rows, arguments...), then adds the losses up.
template <class Launch>
void sum_losses(std::int64_t rows, TensorView loss_sum, const Stream& stream, const Launch& run) {
  const Buffer memory = stream.allocate(rows * static_cast<std::int64_t>(sizeof(double)));
  auto* losses = reinterpret_cast<double*>(memory.data());
  run(losses);
  launch(add_losses_kernel, 1, kThreads, stream, losses, rows, loss_sum.as<double>());
}

}  // namespace

void cuda_cross_entropy_backward(ConstTensorView logits, const Labels& labels,
                                 const LogitsGradient& gradient, TensorView dlogits,
                                 TensorView loss_sum, const Stream& stream) {
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  sum_losses(rows, loss_sum, stream, [&](double* losses) {
    with_activation("cross_entropy_backward", dlogits.dtype(), [&]<class T>() {
      with_count(aligned_rows(vocabulary, logits.data()), [&](auto count) {
        const bool capped = gradient.softcap > 0;
        launch(capped ? backward_kernel<count(), true, T> : backward_kernel<count(), false, T>,
               blocks_for(rows, 1), kThreads, stream, logits.as<float>(),
               rows_of(labels, vocabulary), gradient.scale,
               static_cast<float>(capped ? 1 / gradient.softcap : 0), losses, dlogits.as<T>(),
               dlogits.stride(0));
      });
    });
  });
}

void cuda_cross_entropy(ConstTensorView logits, const Labels& labels, TensorView loss_sum,
                        TensorView row_loss, TensorView row_correct, const Stream& stream) {
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  sum_losses(rows, loss_sum, stream, [&](double* losses) {
    with_count(aligned_rows(vocabulary, logits.data()), [&](auto count) {
      launch(forward_kernel<count()>, blocks_for(rows, 1), kThreads, stream, logits.as<float>(),
             rows_of(labels, vocabulary), losses, row_loss.as<float>(),
             row_correct.as<std::uint8_t>());
    });
  });
}

}  // namespace longhaul::runtime::ops::detail
