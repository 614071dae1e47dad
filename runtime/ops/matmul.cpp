#include "runtime/ops/matmul.h"

#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

detail::MatrixOperand operand(const char* what, const ConstTensorView& view) {
  LONGHAUL_CHECK(view.dims() == 2, "matmul: ", what, " has ", view.dims(), " dims; expected 2");
  detail::require_dtype("matmul", what, view, {DType::float32, DType::bfloat16});
  const bool rows_apart = view.stride(1) == 1 || view.size(1) <= 1;
  LONGHAUL_CHECK(rows_apart || view.stride(0) == 1 || view.size(0) <= 1, "matmul: ", what,
                 " has strides ", view.stride(0), ", ", view.stride(1),
                 "; expected one of them to be 1");
  detail::MatrixOperand result{view, !rows_apart, 1};
  const int outer = rows_apart ? 0 : 1;
  const std::int64_t inner_size = view.size(1 - outer);
  // A single row may carry any stride: it is never used, but gemm wants it to be large enough.
  result.leading =
      std::max<std::int64_t>({1, inner_size, view.size(outer) > 1 ? view.stride(outer) : 1});
  LONGHAUL_CHECK(view.size(outer) <= 1 || view.stride(outer) >= inner_size, "matmul: ", what,
                 " has overlapping rows");
  return result;
}

/// c = a b, or that and the addend, where it has data.
void multiply(ConstTensorView a, ConstTensorView b, ConstTensorView addend, TensorView c,
              const Stream& stream) {
  const detail::MatrixOperand left = operand("a", a), right = operand("b", b),
                              result = operand("c", c);
  LONGHAUL_CHECK(!result.transposed, "matmul: c's last dim must be contiguous");
  LONGHAUL_CHECK(a.size(0) == c.size(0) && a.size(1) == b.size(0) && b.size(1) == c.size(1),
                 "matmul of [", a.size(0), ",", a.size(1), "] and [", b.size(0), ",", b.size(1),
                 "] into [", c.size(0), ",", c.size(1), "]");
  if (c.elements() == 0) return;
  detail::MatrixOperand added;
  if (addend.data() != nullptr) added = operand("the addend", addend);
  LONGHAUL_CHECK(!added.transposed, "matmul: the addend's last dim must be contiguous");
  if (a.size(1) == 0) {
    if (addend.data() == nullptr) return fill(c, 0, stream);
    if (addend.data() != c.data()) copy(addend, c, stream);
    return;
  }
  if (detail::on_cuda(stream))
    return detail::cuda_matmul(left, right, added, c, result.leading, stream);
  const double multiplications = static_cast<double>(c.elements()) * static_cast<double>(a.size(1));
  stream.count_work({.flops = 2 * multiplications});
  detail::cpu_matmul(left, right, added, c, result.leading, stream);
}

}  // namespace

ConstTensorView transposed(ConstTensorView matrix) {
  LONGHAUL_CHECK(matrix.dims() == 2, "transposed takes 2 dims, got ", matrix.dims());
  ConstTensorView view;
  view.assign(matrix.data(), matrix.dtype(), matrix.device(), 2, {matrix.size(1), matrix.size(0)},
              {matrix.stride(1), matrix.stride(0)});
  return view;
}

void matmul(ConstTensorView a, ConstTensorView b, TensorView c, Write write, const Stream& stream) {
  multiply(a, b, write == Write::add ? ConstTensorView(c) : ConstTensorView(), c, stream);
}

void matmul_add(ConstTensorView a, ConstTensorView b, ConstTensorView addend, TensorView c,
                const Stream& stream) {
  LONGHAUL_CHECK(std::ranges::equal(addend.sizes(), c.sizes()), "matmul_add: the addend has ",
                 addend.elements(), " elements, c ", c.elements(), "; expected equal sizes");
  detail::require_dtype("matmul_add", "the addend", addend, {c.dtype()});
  multiply(a, b, addend, c, stream);
}

}  // namespace longhaul::runtime::ops
