#include "runtime/ops/l2_norm.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"
#include "runtime/require_cpu.h"

namespace longhaul::runtime::ops {

void l2_norm(ConstTensorView x, double eps, TensorView y, const Stream& stream) {
  detail::require_like_heads("l2_norm", x, "y", y);
  require_cpu("l2_norm", stream);
  detail::count_bytes(stream, {x, y});
  detail::cpu_l2_norm(x, eps, y, stream);
}

void l2_norm_backward(ConstTensorView x, ConstTensorView dy, double eps, TensorView dx,
                      const Stream& stream) {
  detail::require_like_heads("l2_norm_backward", x, "dx", dx);
  detail::require_heads("l2_norm_backward", "dy", dy, {x.size(0), x.size(1), x.size(2)});
  detail::require_dtype("l2_norm_backward", "dy", dy, {DType::float32});
  require_cpu("l2_norm_backward", stream);
  detail::count_bytes(stream, {x, dy, dx});
  detail::cpu_l2_norm_backward(x, dy, eps, dx, stream);
}

}  // namespace longhaul::runtime::ops
