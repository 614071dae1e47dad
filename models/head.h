#pragma once
// The final norm, the LM head and the loss, in chunks of rows: logits never exist for all rows at
// once.

#include "models/llama_config.h"
#include "models/parameters.h"
#include "runtime/tensor.h"

namespace longhaul::models {

class Head {
 public:
  /// `chunk_rows` rows of logits exist at a time: chunk_rows * V * 4 bytes (* 6 with bfloat16
  /// activations).
  Head(const LlamaConfig& config, const ParameterStore& store, std::int64_t chunk_rows,
       const runtime::Stream& compute);

  /// Loss and gradients in one pass over the chunks. hidden T[n,h], labels[n] int32 (-1: none) ->
  /// dhidden T[n,h], loss_sum[1] float64 += unscaled token losses. Gradients, of loss_scale * loss
  /// sum, are added to the store's.
  void loss_and_backward(runtime::ConstTensorView hidden, runtime::ConstTensorView labels,
                         double loss_scale, runtime::TensorView loss_sum,
                         runtime::TensorView dhidden) const;

  /// loss_sum[1] float64 += token losses; row_loss[n] float32; row_correct[n] uint8, 1 where the
  /// largest logit is the label's.
  void evaluate(runtime::ConstTensorView hidden, runtime::ConstTensorView labels,
                runtime::TensorView loss_sum, runtime::TensorView row_loss,
                runtime::TensorView row_correct) const;

  /// hidden T[n,h] -> fp32[n,V], all rows at once: for a few rows.
  runtime::Tensor logits(runtime::ConstTensorView hidden) const;

 private:
  runtime::Tensor normed(runtime::ConstTensorView hidden, runtime::TensorView inv_rms) const;

  const LlamaConfig config_;
  const std::int64_t chunk_rows_;
  const runtime::Stream compute_;
  const runtime::ConstTensorView norm_, weight_;
  const runtime::TensorView norm_gradient_, weight_gradient_;
};

}  // namespace longhaul::models
