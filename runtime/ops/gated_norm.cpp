#include "runtime/ops/gated_norm.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"
#include "runtime/require_cpu.h"

namespace longhaul::runtime::ops {
namespace {

void check(const char* op, const GatedNorm& norm, const ConstTensorView& x,
           const ConstTensorView& gate, const ConstTensorView& weight,
           const ConstTensorView& result) {
  LONGHAUL_CHECK(x.dims() == 2, op, ": x has ", x.dims(), " dims; expected [n, w]");
  const std::int64_t rows = x.size(0), width = x.size(1);
  LONGHAUL_CHECK(norm.group > 0 && width % norm.group == 0, op, ": a group has ", norm.group,
                 " elements, a row ", width, "; expected a positive divisor");
  LONGHAUL_CHECK(weight.dims() == 1 && weight.size(0) > 0 && weight.size(0) % norm.group == 0 &&
                     width % weight.size(0) == 0,
                 op, ": weight has ", weight.elements(), " elements, a row ", width, ", a group ",
                 norm.group, "; expected a multiple of the group that divides the row");
  detail::require_shape(op, "x", x, {rows, width});
  detail::require_dtype(op, "x", x, {DType::float32});
  detail::require_shape(op, "weight", weight, {weight.size(0)});
  detail::require_shape(op, "y or dx", result, {rows, width});
  if (norm.activation == GateActivation::none) return;
  detail::require_shape(op, "gate", gate, {rows, width});
  detail::require_dtype(op, "gate", gate, {result.dtype()});
}

}  // namespace

void gated_norm(const GatedNorm& norm, ConstTensorView x, ConstTensorView gate,
                ConstTensorView weight, TensorView y, const Stream& stream) {
  check("gated_norm", norm, x, gate, weight, y);
  require_cpu("gated_norm", stream);
  detail::count_bytes(stream, {x, y});
  if (gate.data() != nullptr) detail::count_bytes(stream, {gate});
  detail::cpu_gated_norm(norm, x, gate, weight, y, stream);
}

void gated_norm_backward(const GatedNorm& norm, const GatedNormBackwardInputs& inputs,
                         TensorView dx, TensorView dgate, TensorView dweight,
                         const Stream& stream) {
  const char* op = "gated_norm_backward";
  check(op, norm, inputs.x, inputs.gate, inputs.weight, dx);
  detail::require_shape(op, "dy", inputs.dy, {dx.size(0), dx.size(1)});
  detail::require_dtype(op, "dy", inputs.dy, {DType::float32});
  detail::require_shape(op, "dweight", dweight, {inputs.weight.size(0)});
  if (norm.activation != GateActivation::none) {
    detail::require_shape(op, "dgate", dgate, {dx.size(0), dx.size(1)});
    detail::require_dtype(op, "dgate", dgate, {dx.dtype()});
  }
  require_cpu(op, stream);
  detail::count_bytes(stream, {inputs.x, inputs.dy, dx});
  if (inputs.gate.data() != nullptr) detail::count_bytes(stream, {inputs.gate, dgate});
  detail::cpu_gated_norm_backward(norm, inputs, dx, dgate, dweight, stream);
}

}  // namespace longhaul::runtime::ops
