#include "runtime/ops/rope.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void rope_table(ConstTensorView positions, double theta, TensorView cosines, TensorView sines,
                const Stream& stream) {
  LONGHAUL_CHECK(cosines.dims() == 2, "rope_table: cosines has ", cosines.dims(),
                 " dims; expected 2");
  const std::int64_t rows = cosines.size(0), half = cosines.size(1);
  detail::require_shape("rope_table", "positions", positions, {rows});
  detail::require_dtype("rope_table", "positions", positions, {DType::int32, DType::int64});
  detail::require_shape("rope_table", "cosines", cosines, {rows, half});
  detail::require_shape("rope_table", "sines", sines, {rows, half});
  if (detail::on_cuda(stream))
    return detail::cuda_rope_table(positions, theta, cosines, sines, stream);
  detail::cpu_rope_table(positions, theta, cosines, sines, stream);
}

void rope(TensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
          const Stream& stream) {
  LONGHAUL_CHECK(x.dims() == 3 && x.size(2) % 2 == 0, "rope: x has ", x.dims(),
                 " dims; expected [rows, heads, even D]");
  const std::int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  detail::require_shape("rope", "x", x, {rows, heads, dim});
  detail::require_shape("rope", "cosines", cosines, {rows, dim / 2});
  detail::require_shape("rope", "sines", sines, {rows, dim / 2});
  if (detail::on_cuda(stream)) return detail::cuda_rope(x, cosines, sines, rotation, stream);
  detail::cpu_rope(x, cosines, sines, rotation, stream);
}

}  // namespace longhaul::runtime::ops
