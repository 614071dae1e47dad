#include "attention/time_step.h"

#include "attention/token_ops_impl.h"
#include "runtime/ops/checks.h"
#include "runtime/require_cpu.h"

namespace longhaul::attention {
namespace {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::detail::require_dtype;
using runtime::ops::detail::require_heads;
using runtime::ops::detail::require_shape;

void check_x(const char* op, const ConstTensorView& x) {
  LONGHAUL_CHECK(x.dims() == 3, op, ": x has ", x.dims(), " dims; expected [n, H, E]");
  require_heads(op, "x", x, {x.size(0), x.size(1), x.size(2)});
}
void check_like(const char* op, const ConstTensorView& x, const char* what,
                const ConstTensorView& view, DType dtype) {
  require_shape(op, what, view, {x.size(0), x.size(1), x.size(2)});
  require_dtype(op, what, view, {dtype});
}
void check_step(const char* op, const ConstTensorView& x, const char* what,
                const ConstTensorView& view) {
  require_shape(op, what, view, {x.size(0), x.size(1)});
  require_dtype(op, what, view, {DType::float32});
}
void check_skip(const char* op, const ConstTensorView& x, const char* what,
                const ConstTensorView& view) {
  require_shape(op, what, view, {x.size(1)});
  require_dtype(op, what, view, {DType::float32});
}

}  // namespace

void scale_by_step(ConstTensorView x, ConstTensorView time_step, TensorView v,
                   const Stream& stream) {
  check_x("scale_by_step", x);
  check_step("scale_by_step", x, "time_step", time_step);
  check_like("scale_by_step", x, "v", v, x.dtype());
  runtime::require_cpu("scale_by_step", stream);
  detail::cpu_scale_by_step(x, time_step, v, stream);
}

void add_skip(ConstTensorView x, ConstTensorView d, TensorView y, const Stream& stream) {
  check_x("add_skip", x);
  check_skip("add_skip", x, "d", d);
  check_like("add_skip", x, "y", y, DType::float32);
  runtime::require_cpu("add_skip", stream);
  detail::cpu_add_skip(x, d, y, stream);
}

void time_step_backward(const TimeStepBackwardInputs& inputs, TensorView dx, TensorView dtime_step,
                        TensorView dd, const Stream& stream) {
  const char* op = "time_step_backward";
  const ConstTensorView& x = inputs.x;
  check_x(op, x);
  check_step(op, x, "time_step", inputs.time_step);
  check_skip(op, x, "d", inputs.d);
  check_like(op, x, "dv", inputs.dv, DType::float32);
  check_like(op, x, "dy", inputs.dy, x.dtype());
  require_heads(op, "dx", dx, {x.size(0), x.size(1), x.size(2)});
  require_dtype(op, "dx", dx, {x.dtype()});
  check_step(op, x, "dtime_step", dtime_step);
  check_skip(op, x, "dd", dd);
  runtime::require_cpu(op, stream);
  detail::cpu_time_step_backward(inputs, dx, dtime_step, dd, stream);
}

}  // namespace longhaul::attention
