#include "runtime/ops/bias.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

void check(const char* op, const char* what, const ConstTensorView& rows,
           const ConstTensorView& bias) {
  LONGHAUL_CHECK(rows.dims() == 2, op, ": ", what, " has ", rows.dims(),
                 " dims; expected [rows, m]");
  detail::require_shape(op, what, rows, {rows.size(0), rows.size(1)});
  detail::require_shape(op, "the bias", bias, {rows.size(1)});
  detail::require_dtype(op, "the bias", bias, {DType::float32});
}

}  // namespace

void add_bias(ConstTensorView bias, TensorView y, const Stream& stream) {
  check("add_bias", "y", y, bias);
  if (detail::on_cuda(stream)) return detail::cuda_add_bias(bias, y, stream);
  detail::count_bytes(stream, {y, y});
  detail::cpu_add_bias(bias, y, stream);
}

void bias_backward(ConstTensorView dy, TensorView dbias, const Stream& stream) {
  check("bias_backward", "dy", dy, dbias);
  if (detail::on_cuda(stream)) return detail::cuda_bias_backward(dy, dbias, stream);
  detail::count_bytes(stream, {dy});
  detail::cpu_bias_backward(dy, dbias, stream);
}

}  // namespace longhaul::runtime::ops
