#pragma once
// Llama with explicit forward and backward on this rank's rows; attention is the only place where
// ranks meet. Source: Touvron et al. 2023 (LLaMA); names and conventions of Hugging Face's weights.

#include <functional>
#include <memory>
#include <vector>

#include "models/head.h"
#include "models/layer.h"
#include "models/llama_config.h"
#include "models/parameters.h"
#include "parallel/attention.h"
#include "runtime/tensor.h"

namespace longhaul::models {

/// This rank's rows, in the order of the layout given to Attention::set_batch. int32 [n] each. The
/// memory must stay valid until the compute stream has passed the call (tensors of the compute
/// stream do).
struct Batch {
  runtime::ConstTensorView tokens;
  runtime::ConstTensorView labels;     ///< -1: the row has none
  runtime::ConstTensorView positions;  ///< inside the document
};

enum class Recompute : unsigned char {
  none,  ///< keeps what every layer's backward needs
  full  ///< keeps each layer's input and computes the rest again, attention included; the same bits
};

struct LlamaOptions {
  Recompute recompute = Recompute::none;
  std::int64_t head_chunk_rows = 512;  ///< rows of logits that exist at a time
};

struct Pass {
  /// 1 / the global number of labels of the step, all micro-batches together.
  double loss_scale = 1;
  /// Called on the host, in reverse order of the table, as soon as the work that completes a
  /// group's gradients is enqueued on the compute stream. Given for the last micro-batch of a step,
  /// else empty.
  std::function<void(parallel::ElementRange)> on_gradients;
  /// When it has data: T[n,h] <- the gradient at the embedding's output.
  runtime::TensorView embedding_gradient;
};

struct Evaluation {
  runtime::Tensor loss_sum;     ///< float64[1]
  runtime::Tensor row_loss;     ///< float32[n], 0 without a label
  runtime::Tensor row_correct;  ///< uint8[n], 1 where the largest logit is the label's
};

/// Borrows the store and the attention. Calls only enqueue on `compute`; results are readable after
/// it. All ranks of the attention's communicator call in the same order, with any number of rows
/// each (0 too).
class Llama {
 public:
  /// `store` was built from parameter_table(config) with config.dtype. Throws Error(config) for a
  /// bad config.
  Llama(const LlamaConfig& config, const LlamaOptions& options, ParameterStore& store,
        parallel::Attention& attention, const runtime::Stream& compute);

  const LlamaConfig& config() const { return config_; }

  /// Adds the gradients of loss_scale * sum of token losses to the store's; returns the unscaled
  /// sum over this rank's rows, float64[1].
  [[nodiscard]] runtime::Tensor forward_backward(const Batch& batch, const Pass& pass);

  /// Forward only. Memory: one layer's activations at a time.
  [[nodiscard]] Evaluation evaluate(const Batch& batch);

  /// fp32 logits [end - begin, V] of local rows [begin, end). Labels are not read.
  [[nodiscard]] runtime::Tensor logits(const Batch& batch, std::int64_t begin, std::int64_t end);

 private:
  RopeTables rope_tables(const Batch& batch) const;
  runtime::Tensor embed(const Batch& batch) const;
  runtime::Tensor forward_hidden(const Batch& batch);

  const LlamaConfig config_;
  const LlamaOptions options_;
  ParameterStore& store_;
  const runtime::Stream compute_;
  std::vector<std::unique_ptr<Layer>> layers_;
  const Head head_;
};

}  // namespace longhaul::models
