#include "runtime/ops/cross_entropy.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

void check(const char* op, const ConstTensorView& logits, const Labels& labels,
           const ConstTensorView& loss_sum) {
  LONGHAUL_CHECK(logits.dims() == 2, op, ": logits have ", logits.dims(),
                 " dims; expected [rows, V]");
  detail::require_shape(op, "logits", logits, {logits.size(0), logits.size(1)});
  detail::require_dtype(op, "logits", logits, {DType::float32});
  detail::require_shape(op, "labels", labels.tokens, {logits.size(0)});
  detail::require_dtype(op, "labels", labels.tokens, {DType::int32});
  if (labels.weights.data() != nullptr) {
    detail::require_shape(op, "weights", labels.weights, {logits.size(0)});
    detail::require_dtype(op, "weights", labels.weights, {DType::float32});
  }
  detail::require_shape(op, "loss_sum", loss_sum, {1});
  detail::require_dtype(op, "loss_sum", loss_sum, {DType::float64});
  LONGHAUL_CHECK(logits.size(1) > 0, op, ": the vocabulary is empty");
}

/// Rows of another dtype, each at the front of the logits' row.
TensorView in_place_of(const TensorView& logits, DType dtype) {
  const std::int64_t row_bytes = logits.stride(0) * size_bytes(logits.dtype());
  TensorView view;
  view.assign(logits.data(), dtype, logits.device(), 2, {logits.size(0), logits.size(1)},
              {row_bytes / size_bytes(dtype), 1});
  return view;
}

}  // namespace

Labels Labels::slice(std::int64_t begin, std::int64_t end) const {
  return {tokens.slice(0, begin, end),
          weights.data() == nullptr ? weights : weights.slice(0, begin, end)};
}

TensorView cross_entropy_backward(TensorView logits, const Labels& labels,
                                  const LogitsGradient& gradient, TensorView loss_sum,
                                  const Stream& stream) {
  check("cross_entropy", logits, labels, loss_sum);
  const TensorView dlogits = in_place_of(logits, gradient.dtype);
  detail::require_dtype("cross_entropy", "dlogits", dlogits, {DType::float32, DType::bfloat16});
  if (logits.size(0) == 0) return dlogits;
  detail::count_bytes(stream, {logits, dlogits});
  (detail::on_cuda(stream)
       ? detail::cuda_cross_entropy_backward
       : detail::cpu_cross_entropy_backward)(logits, labels, gradient, dlogits, loss_sum, stream);
  return dlogits;
}

void cross_entropy(ConstTensorView logits, const Labels& labels, TensorView loss_sum,
                   TensorView row_loss, TensorView row_correct, const Stream& stream) {
  check("cross_entropy", logits, labels, loss_sum);
  const std::int64_t rows = logits.size(0);
  detail::require_shape("cross_entropy", "row_loss", row_loss, {rows});
  detail::require_shape("cross_entropy", "row_correct", row_correct, {rows});
  if (rows == 0) return;
  if (detail::on_cuda(stream))
    return detail::cuda_cross_entropy(logits, labels, loss_sum, row_loss, row_correct, stream);
  detail::count_bytes(stream, {logits});
  detail::cpu_cross_entropy(logits, labels, loss_sum, row_loss, row_correct, stream);
}

}  // namespace longhaul::runtime::ops
