#pragma once
// The final norm, the LM head and the loss, in chunks of rows: logits never exist for all rows at
// once.

#include <string>

#include "models/block.h"
#include "models/parameters.h"
#include "models/weights.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/tensor.h"

namespace longhaul::models {

struct HeadOptions {
  std::int64_t hidden = 0, vocabulary = 0;
  double norm_eps = 1e-5;
  runtime::DType dtype = runtime::DType::float32;  ///< of activations
  std::string norm, weight;   ///< names of parameters; the weight [V,h] may be the embedding's
  float norm_offset = 0;      ///< added to the norm's weights
  double logits_scaling = 1;  ///< what logits are divided by (Granite)
  double softcap = 0;         ///< c > 0: logits become c tanh(logits / c) (Gemma 2)
};

class Head {
 public:
  /// The parameters are in the table. `chunk_rows` rows of logits exist at a time: chunk_rows * V *
  /// 4 bytes, which their gradient takes over.
  Head(const HeadOptions& options, const parallel::ParameterTable& table, std::int64_t chunk_rows);

  /// Of the matrix, forward and backward: 6 a weight and token.
  double flops(std::int64_t tokens) const;

  /// Most bytes that loss_and_backward() takes for n rows.
  std::int64_t passing_bytes(std::int64_t rows) const;

  /// Loss and gradients in one pass over the chunks. hidden T[n,h], labels of n rows -> dhidden
  /// T[n,h], loss_sum[1] float64 += unscaled token losses, each by its label's weight. Gradients,
  /// of loss_scale * loss sum, are added to the store's.
  void loss_and_backward(const Resources& resources, runtime::ConstTensorView hidden,
                         const runtime::ops::Labels& labels, double loss_scale,
                         runtime::TensorView loss_sum, runtime::TensorView dhidden) const;

  /// loss_sum[1] float64 += token losses, each by its label's weight; row_loss[n] float32,
  /// unweighted; row_correct[n] uint8, 1 where the largest logit is the label's.
  void evaluate(const Resources& resources, runtime::ConstTensorView hidden,
                const runtime::ops::Labels& labels, runtime::TensorView loss_sum,
                runtime::TensorView row_loss, runtime::TensorView row_correct) const;

  /// hidden T[n,h] -> fp32[n,V], all rows at once: for a few rows.
  runtime::Tensor logits(const Resources& resources, runtime::ConstTensorView hidden) const;

 private:
  /// The final norm's rows, T[n,h].
  runtime::Tensor normed(const Resources& resources, runtime::ConstTensorView hidden,
                         runtime::TensorView inv_rms) const;
  /// Logits fp32[n,V] of normalised rows.
  void score(const runtime::Stream& compute, runtime::ConstTensorView normed, const Weight& weight,
             runtime::TensorView logits) const;

  const HeadOptions options_;
  const std::int64_t chunk_rows_;
  const int norm_group_, weight_group_;
};

}  // namespace longhaul::models
