// Cross entropy on CUDA, a block a row: the largest logit and the sum of exponentials in one pass
// over the row, the gradient in a second one. Sums are in double.

#include <cfloat>

#include "runtime/kernel.cuh"
#include "runtime/ops/checks.h"
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

/// Calls body(first element, Count<N>()) for this thread's elements of a row.
template <class Body>
__device__ void for_each_logit(std::int64_t vocabulary, bool packed, const Body& body) {
  const std::int64_t whole = packed ? vocabulary / kPack : 0;
  for (std::int64_t i = threadIdx.x; i < whole; i += blockDim.x) body(i * kPack, Count<kPack>());
  for (std::int64_t i = whole * kPack + threadIdx.x; i < vocabulary; i += blockDim.x)
    body(i, Count<1>());
}

/// The same sums on every thread. `beats` looks at each logit once: (index, value).
template <class Beats>
__device__ RowSums row_sums(const float* logits, std::int64_t vocabulary, bool packed,
                            const Beats& beats) {
  // A finite start: e^(-inf - start) is 0, also where a thread sees nothing but -inf.
  float largest = -FLT_MAX;
  double sum = 0;
  for_each_logit(vocabulary, packed, [&](std::int64_t i, auto count) {
    float values[count()];
    load(logits + i, values);
    float of_pack = values[0];
#pragma unroll
    for (int j = 1; j < count(); ++j) of_pack = fmaxf(of_pack, values[j]);
    if (of_pack > largest) {
      sum *= exp(static_cast<double>(largest) - static_cast<double>(of_pack));
      largest = of_pack;
    }
#pragma unroll
    for (int j = 0; j < count(); ++j) {
      sum += static_cast<double>(expf(values[j] - largest));
      beats(i + j, values[j]);
    }
  });
  const float maximum = block_max(largest);
  sum *= exp(static_cast<double>(largest) - static_cast<double>(maximum));
  return {maximum, block_sum(sum)};
}

__device__ double row_loss(const RowSums& sums, float label_logit) {
  return log(sums.exponentials) +
         (static_cast<double>(sums.maximum) - static_cast<double>(label_logit));
}

/// weight * row loss into losses; logits <- scale * weight * (softmax - one-hot).
__global__ void __launch_bounds__(kThreads)
    backward_kernel(float* logits, const Rows labels, double scale, double* losses, bool packed) {
  __shared__ float gradients[2];  // of e^(logit - maximum), and at the label
  for (std::int64_t row = blockIdx.x; row < labels.rows; row += gridDim.x) {
    float* of_row = logits + row * labels.vocabulary;
    const double weight = labels.weight(row);
    const std::int32_t label = labels.labels[row];
    if (!(weight > 0)) {  // 0 or NaN, and so are the gradients
      for_each_logit(labels.vocabulary, packed, [&](std::int64_t i, auto count) {
        float values[count()];
#pragma unroll
        for (int j = 0; j < count(); ++j) values[j] = static_cast<float>(weight);
        store(values, of_row + i);
      });
      if (threadIdx.x == 0) losses[row] = weight;
      continue;
    }
    const RowSums sums = row_sums(of_row, labels.vocabulary, packed, [](std::int64_t, float) {});
    if (threadIdx.x == 0) {
      const double loss = row_loss(sums, of_row[label]);
      losses[row] = weight * loss;
      gradients[0] = static_cast<float>(scale * weight / sums.exponentials);
      // p - 1 from the other side, so that a confident row keeps its digits: -(1 - e^-loss).
      gradients[1] = static_cast<float>(scale * weight * expm1(-loss));
    }
    __syncthreads();
    // Read before the barriers of the next row's sums, so before the next write.
    const float factor = gradients[0], at_label = gradients[1];
    for_each_logit(labels.vocabulary, packed, [&](std::int64_t i, auto count) {
      float values[count()];
      load(of_row + i, values);
#pragma unroll
      for (int j = 0; j < count(); ++j)
        values[j] = i + j == label ? at_label : expf(values[j] - sums.maximum) * factor;
      store(values, of_row + i);
    });
  }
}

__global__ void __launch_bounds__(kThreads)
    forward_kernel(const float* logits, const Rows labels, double* losses, float* row_losses,
                   std::uint8_t* row_correct, bool packed) {
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
    const RowSums sums =
        row_sums(of_row, labels.vocabulary, packed, [&](std::int64_t i, float value) {
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

void cuda_cross_entropy_backward(TensorView logits, const Labels& labels, double scale,
                                 TensorView loss_sum, const Stream& stream) {
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  sum_losses(rows, loss_sum, stream, [&](double* losses) {
    launch(backward_kernel, blocks_for(rows, 1), threads_for(vocabulary), stream,
           logits.as<float>(), rows_of(labels, vocabulary), scale, losses,
           aligned_rows(vocabulary, logits.data()));
  });
}

void cuda_cross_entropy(ConstTensorView logits, const Labels& labels, TensorView loss_sum,
                        TensorView row_loss, TensorView row_correct, const Stream& stream) {
  const std::int64_t rows = logits.size(0), vocabulary = logits.size(1);
  sum_losses(rows, loss_sum, stream, [&](double* losses) {
    launch(forward_kernel, blocks_for(rows, 1), threads_for(vocabulary), stream, logits.as<float>(),
           rows_of(labels, vocabulary), losses, row_loss.as<float>(),
           row_correct.as<std::uint8_t>(), aligned_rows(vocabulary, logits.data()));
  });
}

}  // namespace longhaul::runtime::ops::detail
