#include "attention/normaliser.h"

#include "attention/token_ops_impl.h"
#include "runtime/ops/checks.h"
#include "runtime/require_cpu.h"

namespace longhaul::attention {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::TensorView;
using runtime::ops::detail::require_dtype;
using runtime::ops::detail::require_heads;
using runtime::ops::detail::require_shape;

void append_ones(ConstTensorView v, TensorView extended, const Stream& stream) {
  const char* op = "append_ones";
  LONGHAUL_CHECK(v.dims() == 3, op, ": v has ", v.dims(), " dims; expected [n, H, E]");
  require_heads(op, "v", v, {v.size(0), v.size(1), v.size(2)});
  require_shape(op, "extended", extended, {v.size(0), v.size(1), v.size(2) + 1});
  require_dtype(op, "extended", extended, {v.dtype()});
  runtime::require_cpu(op, stream);
  detail::cpu_append_ones(v, extended, stream);
}

void normalise(ConstTensorView extended, TensorView out, const Stream& stream) {
  const char* op = "normalise";
  LONGHAUL_CHECK(out.dims() == 3, op, ": out has ", out.dims(), " dims; expected [n, H, E]");
  require_shape(op, "out", out, {out.size(0), out.size(1), out.size(2)});
  require_dtype(op, "out", out, {DType::float32});
  require_shape(op, "extended", extended, {out.size(0), out.size(1), out.size(2) + 1});
  require_dtype(op, "extended", extended, {DType::float32});
  runtime::require_cpu(op, stream);
  detail::cpu_normalise(extended, out, stream);
}

void normalise_backward(ConstTensorView extended, ConstTensorView dout, TensorView dextended,
                        const Stream& stream) {
  const char* op = "normalise_backward";
  LONGHAUL_CHECK(dout.dims() == 3, op, ": dout has ", dout.dims(), " dims; expected [n, H, E]");
  require_shape(op, "dout", dout, {dout.size(0), dout.size(1), dout.size(2)});
  require_shape(op, "extended", extended, {dout.size(0), dout.size(1), dout.size(2) + 1});
  require_dtype(op, "extended", extended, {DType::float32});
  require_shape(op, "dextended", dextended, {dout.size(0), dout.size(1), dout.size(2) + 1});
  runtime::require_cpu(op, stream);
  detail::cpu_normalise_backward(extended, dout, dextended, stream);
}

}  // namespace longhaul::attention
