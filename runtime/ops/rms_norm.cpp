#include "runtime/ops/rms_norm.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

void check(const char* op, const ConstTensorView& x, const NormWeight& weight,
           const ConstTensorView& inv_rms, const ConstTensorView& other) {
  LONGHAUL_CHECK(x.dims() == 2, op, ": x has ", x.dims(), " dims; expected [rows, h]");
  detail::require_shape(op, "x", x, {x.size(0), x.size(1)});
  detail::require_shape(op, "weight", weight.values, {x.size(1)});
  detail::require_shape(op, "inv_rms", inv_rms, {x.size(0)});
  detail::require_shape(op, "y or dy", other, {x.size(0), x.size(1)});
}

}  // namespace

void rms_norm(ConstTensorView x, const NormWeight& weight, double eps, TensorView y,
              TensorView inv_rms, const Stream& stream) {
  check("rms_norm", x, weight, inv_rms, y);
  if (detail::on_cuda(stream)) return detail::cuda_rms_norm(x, weight, eps, y, inv_rms, stream);
  detail::count_bytes(stream, {x, y});
  detail::cpu_rms_norm(x, weight, eps, y, inv_rms, stream);
}

void inverse_rms(ConstTensorView x, double eps, TensorView inv_rms, const Stream& stream) {
  LONGHAUL_CHECK(x.dims() == 2, "inverse_rms: x has ", x.dims(), " dims; expected [rows, h]");
  detail::require_shape("inverse_rms", "x", x, {x.size(0), x.size(1)});
  detail::require_shape("inverse_rms", "inv_rms", inv_rms, {x.size(0)});
  if (detail::on_cuda(stream)) return detail::cuda_inverse_rms(x, eps, inv_rms, stream);
  detail::count_bytes(stream, {x});
  detail::cpu_inverse_rms(x, eps, inv_rms, stream);
}

void rms_norm_apply(ConstTensorView x, const NormWeight& weight, ConstTensorView inv_rms,
                    TensorView y, const Stream& stream) {
  check("rms_norm_apply", x, weight, inv_rms, y);
  if (detail::on_cuda(stream)) return detail::cuda_rms_norm_apply(x, weight, inv_rms, y, stream);
  detail::count_bytes(stream, {x, y});
  detail::cpu_rms_norm_apply(x, weight, inv_rms, y, stream);
}

void rms_norm_backward(const RmsNormBackwardInputs& inputs, TensorView dx, Write write_dx,
                       TensorView dweight, const Stream& stream) {
  check("rms_norm_backward", inputs.x, inputs.weight, inputs.inv_rms, inputs.dy);
  detail::require_shape("rms_norm_backward", "dx", dx, {inputs.x.size(0), inputs.x.size(1)});
  detail::require_shape("rms_norm_backward", "dweight", dweight, {inputs.x.size(1)});
  if (detail::on_cuda(stream))
    return detail::cuda_rms_norm_backward(inputs, dx, write_dx, dweight, stream);
  detail::count_bytes(stream, {inputs.x, inputs.dy, dx});
  if (write_dx == Write::add) detail::count_bytes(stream, {dx});
  detail::cpu_rms_norm_backward(inputs, dx, write_dx, dweight, stream);
}

}  // namespace longhaul::runtime::ops
