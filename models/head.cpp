#include "models/head.h"

#include <algorithm>

#include "models/weights.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/scaled.h"
#include "runtime/ops/softcap.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

Head::Head(const HeadOptions& options, const parallel::ParameterTable& table,
           std::int64_t chunk_rows)
    : options_(options),
      chunk_rows_(chunk_rows),
      norm_group_(table.find(options.norm).group),
      weight_group_(table.find(options.weight).group) {
  LONGHAUL_CHECK(chunk_rows >= 1, "the head's chunk is ", chunk_rows, " rows; expected at least 1");
}

double Head::flops(std::int64_t tokens) const {
  return 6 * static_cast<double>(tokens) *
         (static_cast<double>(options_.hidden) * static_cast<double>(options_.vocabulary));
}

/// The normalised rows in T, their gradient in fp32 and a number a row; a chunk of logits in fp32.
std::int64_t Head::passing_bytes(std::int64_t rows) const {
  const std::int64_t element = size_bytes(options_.dtype), wide = size_bytes(DType::float32);
  return rows * (options_.hidden * (element + wide) + wide) +
         std::min(chunk_rows_, rows) * options_.vocabulary * wide;
}

Tensor Head::normed(const Resources& resources, ConstTensorView hidden, TensorView inv_rms) const {
  const runtime::Stream& compute = resources.compute;
  const Weights weights(resources.store, norm_group_);
  Tensor rows({hidden.size(0), options_.hidden}, options_.dtype, compute);
  ops::rms_norm(hidden, {weights.value(options_.norm).value, options_.norm_offset},
                options_.norm_eps, rows, inv_rms, compute);
  return rows;
}

void Head::score(const runtime::Stream& compute, ConstTensorView normed, const Weight& weight,
                 TensorView logits) const {
  ops::matmul(normed, ops::transposed(weight.value), logits, Write::overwrite, compute);
  if (options_.logits_scaling != 1)
    ops::scaled(logits, 1 / options_.logits_scaling, Write::overwrite, logits, compute);
  if (options_.softcap > 0) ops::softcap(logits, options_.softcap, compute);
}

void Head::loss_and_backward(const Resources& resources, ConstTensorView hidden,
                             const ops::Labels& labels, double loss_scale, TensorView loss_sum,
                             TensorView dhidden) const {
  const runtime::Stream& compute = resources.compute;
  const Weights norms(resources.store, norm_group_), matrices(resources.store, weight_group_);
  const Weight norm = norms.value(options_.norm), weight = matrices.working(options_.weight);
  const std::int64_t n = hidden.size(0), h = options_.hidden, vocabulary = options_.vocabulary;
  const Tensor inv_rms({n}, DType::float32, compute);
  const Tensor rows = normed(resources, hidden, inv_rms);
  const Tensor drows({n, h}, DType::float32, compute);
  const std::int64_t step = std::min(chunk_rows_, n);
  const Tensor logits({step, vocabulary}, DType::float32, compute);
  const ops::LogitsGradient of_product{loss_scale / options_.logits_scaling, options_.dtype,
                                       options_.softcap};
  for (std::int64_t begin = 0; begin < n; begin += step) {
    const std::int64_t end = std::min(n, begin + step);
    const ConstTensorView chunk = rows.view().slice(0, begin, end);
    const TensorView scores = logits.view().slice(0, 0, end - begin);
    score(compute, chunk, weight, scores);
    const ConstTensorView dlogits = ops::cross_entropy_backward(scores, labels.slice(begin, end),
                                                                of_product, loss_sum, compute);
    weight.add_product(ops::transposed(dlogits), chunk, compute);
    ops::matmul(dlogits, weight.value, drows.view().slice(0, begin, end), Write::overwrite,
                compute);
  }
  ops::rms_norm_backward({hidden, {norm.value, options_.norm_offset}, inv_rms, drows}, dhidden,
                         Write::overwrite, norm.gradient(compute), compute);
}

void Head::evaluate(const Resources& resources, ConstTensorView hidden, const ops::Labels& labels,
                    TensorView loss_sum, TensorView row_loss, TensorView row_correct) const {
  const runtime::Stream& compute = resources.compute;
  const Weights matrices(resources.store, weight_group_);
  const Weight weight = matrices.working(options_.weight);
  const std::int64_t n = hidden.size(0);
  const Tensor inv_rms({n}, DType::float32, compute);
  const Tensor rows = normed(resources, hidden, inv_rms);
  const std::int64_t step = std::min(chunk_rows_, n);
  const Tensor logits({step, options_.vocabulary}, DType::float32, compute);
  for (std::int64_t begin = 0; begin < n; begin += step) {
    const std::int64_t end = std::min(n, begin + step);
    const TensorView scores = logits.view().slice(0, 0, end - begin);
    score(compute, rows.view().slice(0, begin, end), weight, scores);
    ops::cross_entropy(scores, labels.slice(begin, end), loss_sum, row_loss.slice(0, begin, end),
                       row_correct.slice(0, begin, end), compute);
  }
}

Tensor Head::logits(const Resources& resources, ConstTensorView hidden) const {
  const runtime::Stream& compute = resources.compute;
  const Weights matrices(resources.store, weight_group_);
  const Weight weight = matrices.working(options_.weight);
  const Tensor inv_rms({hidden.size(0)}, DType::float32, compute);
  const Tensor rows = normed(resources, hidden, inv_rms);
  Tensor scores({hidden.size(0), options_.vocabulary}, DType::float32, compute);
  score(compute, rows, weight, scores);
  return scores;
}

}  // namespace longhaul::models
