#include "runtime/ops/sigmoid_gate.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void sigmoid_gate(ConstTensorView x, ConstTensorView gate, TensorView y, const Stream& stream) {
  detail::require_alike("sigmoid_gate", {{"x", x}, {"gate", gate}, {"y", y}});
  if (detail::on_cuda(stream)) return detail::cuda_sigmoid_gate(x, gate, y, stream);
  detail::count_bytes(stream, {x, gate, y});
  detail::cpu_sigmoid_gate(x, gate, y, stream);
}

void sigmoid_gate_backward(ConstTensorView x, TensorView gate, TensorView dy,
                           const Stream& stream) {
  detail::require_alike("sigmoid_gate_backward", {{"x", x}, {"gate", gate}, {"dy", dy}});
  if (detail::on_cuda(stream)) return detail::cuda_sigmoid_gate_backward(x, gate, dy, stream);
  detail::count_bytes(stream, {x, gate, gate, dy, dy});
  detail::cpu_sigmoid_gate_backward(x, gate, dy, stream);
}

}  // namespace longhaul::runtime::ops
