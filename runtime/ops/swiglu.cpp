#include "runtime/ops/swiglu.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

void check(const char* op, const ConstTensorView& reference,
           std::initializer_list<ConstTensorView> others) {
  LONGHAUL_CHECK(reference.dims() == 2, op, ": gate has ", reference.dims(),
                 " dims; expected [rows, f]");
  detail::require_shape(op, "gate", reference, {reference.size(0), reference.size(1)});
  for (const ConstTensorView& other : others) {
    detail::require_shape(op, "an operand", other, {reference.size(0), reference.size(1)});
    detail::require_dtype(op, "an operand", other, {reference.dtype()});
  }
}

}  // namespace

void swiglu(ConstTensorView gate, ConstTensorView up, TensorView y, const Stream& stream) {
  check("swiglu", gate, {up, y});
  if (detail::on_cuda(stream)) return detail::cuda_swiglu(gate, up, y, stream);
  detail::cpu_swiglu(gate, up, y, stream);
}

void swiglu_backward(ConstTensorView gate, ConstTensorView up, ConstTensorView dy, TensorView dgate,
                     TensorView dup, const Stream& stream) {
  check("swiglu_backward", gate, {up, dy, dgate, dup});
  if (detail::on_cuda(stream))
    return detail::cuda_swiglu_backward(gate, up, dy, dgate, dup, stream);
  detail::cpu_swiglu_backward(gate, up, dy, dgate, dup, stream);
}

}  // namespace longhaul::runtime::ops
