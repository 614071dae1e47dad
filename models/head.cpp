#include "models/head.h"

#include <algorithm>

#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/rms_norm.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

namespace {

std::string weight_name(const LlamaConfig& config) {
  return config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
}

}  // namespace

Head::Head(const LlamaConfig& config, const ParameterStore& store, std::int64_t chunk_rows,
           const runtime::Stream& compute)
    : config_(config),
      chunk_rows_(chunk_rows),
      compute_(compute),
      norm_(store.value("model.norm.weight")),
      weight_(store.working(weight_name(config))),
      norm_gradient_(store.gradient("model.norm.weight")),
      weight_gradient_(store.gradient(weight_name(config))) {
  LONGHAUL_CHECK(chunk_rows >= 1, "the head's chunk is ", chunk_rows, " rows; expected at least 1");
}

Tensor Head::normed(ConstTensorView hidden, TensorView inv_rms) const {
  Tensor rows({hidden.size(0), config_.hidden_size}, config_.dtype, compute_);
  ops::rms_norm(hidden, norm_, config_.rms_norm_eps, rows, inv_rms, compute_);
  return rows;
}

void Head::loss_and_backward(ConstTensorView hidden, ConstTensorView labels, double loss_scale,
                             TensorView loss_sum, TensorView dhidden) const {
  const std::int64_t n = hidden.size(0), h = config_.hidden_size, vocabulary = config_.vocab_size;
  const Tensor inv_rms({n}, DType::float32, compute_);
  const Tensor rows = normed(hidden, inv_rms);
  const Tensor drows({n, h}, DType::float32, compute_);
  const std::int64_t step = std::min(chunk_rows_, n);
  const Tensor logits({step, vocabulary}, DType::float32, compute_);
  const bool rounded = config_.dtype != DType::float32;
  const Tensor dlogits_rounded({rounded ? step : 0, vocabulary}, config_.dtype, compute_);
  for (std::int64_t begin = 0; begin < n; begin += step) {
    const std::int64_t end = std::min(n, begin + step);
    const ConstTensorView chunk = rows.view().slice(0, begin, end);
    const TensorView scores = logits.view().slice(0, 0, end - begin);
    ops::matmul(chunk, ops::transposed(weight_), scores, Write::overwrite, compute_);
    ops::cross_entropy_backward(scores, labels.slice(0, begin, end), loss_scale, loss_sum,
                                compute_);
    ConstTensorView dlogits = scores;
    if (rounded) {
      const TensorView copy = dlogits_rounded.view().slice(0, 0, end - begin);
      ops::cast(scores, copy, compute_);
      dlogits = copy;
    }
    ops::matmul(ops::transposed(dlogits), chunk, weight_gradient_, Write::add, compute_);
    ops::matmul(dlogits, weight_, drows.view().slice(0, begin, end), Write::overwrite, compute_);
  }
  ops::rms_norm_backward({hidden, norm_, inv_rms, drows}, dhidden, Write::overwrite, norm_gradient_,
                         compute_);
}

void Head::evaluate(ConstTensorView hidden, ConstTensorView labels, TensorView loss_sum,
                    TensorView row_loss, TensorView row_correct) const {
  const std::int64_t n = hidden.size(0);
  const Tensor inv_rms({n}, DType::float32, compute_);
  const Tensor rows = normed(hidden, inv_rms);
  const std::int64_t step = std::min(chunk_rows_, n);
  const Tensor logits({step, config_.vocab_size}, DType::float32, compute_);
  for (std::int64_t begin = 0; begin < n; begin += step) {
    const std::int64_t end = std::min(n, begin + step);
    const TensorView scores = logits.view().slice(0, 0, end - begin);
    ops::matmul(rows.view().slice(0, begin, end), ops::transposed(weight_), scores,
                Write::overwrite, compute_);
    ops::cross_entropy(scores, labels.slice(0, begin, end), loss_sum, row_loss.slice(0, begin, end),
                       row_correct.slice(0, begin, end), compute_);
  }
}

Tensor Head::logits(ConstTensorView hidden) const {
  const Tensor inv_rms({hidden.size(0)}, DType::float32, compute_);
  const Tensor rows = normed(hidden, inv_rms);
  Tensor scores({hidden.size(0), config_.vocab_size}, DType::float32, compute_);
  ops::matmul(rows, ops::transposed(weight_), scores, Write::overwrite, compute_);
  return scores;
}

}  // namespace longhaul::models
