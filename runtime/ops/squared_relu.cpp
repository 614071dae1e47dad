#include "runtime/ops/squared_relu.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void squared_relu(ConstTensorView x, TensorView y, const Stream& stream) {
  detail::require_alike("squared_relu", {{"x", x}, {"y", y}});
  if (detail::on_cuda(stream)) return detail::cuda_squared_relu(x, y, stream);
  detail::count_bytes(stream, {x, y});
  detail::cpu_squared_relu(x, y, stream);
}

void squared_relu_backward(TensorView x, TensorView dy, const Stream& stream) {
  detail::require_alike("squared_relu_backward", {{"x", x}, {"dy", dy}});
  if (detail::on_cuda(stream)) return detail::cuda_squared_relu_backward(x, dy, stream);
  detail::count_bytes(stream, {x, x, dy});
  detail::cpu_squared_relu_backward(x, dy, stream);
}

}  // namespace longhaul::runtime::ops
