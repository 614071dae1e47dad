#include "runtime/ops/glu.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

void check(const char* op, const ConstTensorView& gate_up, const char* what,
           const ConstTensorView& gated) {
  LONGHAUL_CHECK(gated.dims() == 2, op, ": ", what, " has ", gated.dims(),
                 " dims; expected [rows, f]");
  detail::require_shape(op, what, gated, {gated.size(0), gated.size(1)});
  detail::require_shape(op, "gate_up", gate_up, {gated.size(0), 2 * gated.size(1)});
  detail::require_dtype(op, "gate_up", gate_up, {gated.dtype()});
}

}  // namespace

void glu(Glu kind, ConstTensorView gate_up, TensorView y, const Stream& stream) {
  check("glu", gate_up, "y", y);
  if (detail::on_cuda(stream)) return detail::cuda_glu(kind, gate_up, y, stream);
  detail::count_bytes(stream, {gate_up, y});
  detail::cpu_glu(kind, gate_up, y, stream);
}

void glu_backward(Glu kind, TensorView gate_up, TensorView dy, const Stream& stream) {
  check("glu_backward", gate_up, "dy", dy);
  if (detail::on_cuda(stream)) return detail::cuda_glu_backward(kind, gate_up, dy, stream);
  detail::count_bytes(stream, {gate_up, gate_up, dy, dy});
  detail::cpu_glu_backward(kind, gate_up, dy, stream);
}

}  // namespace longhaul::runtime::ops
