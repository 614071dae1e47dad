#include "runtime/ops/rope.h"

#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {
namespace {

/// Throws unless each of the rows is contiguous and they do not overlap.
void require_heads(const char* what, ConstTensorView view, ConstTensorView like) {
  LONGHAUL_CHECK(std::ranges::equal(view.sizes(), like.sizes()), "rope: x has ", like.elements(),
                 " elements, ", what, " ", view.elements(), "; expected equal sizes");
  if (view.elements() == 0) return;
  LONGHAUL_CHECK(view.slice(0, 0, 1).contiguous() &&
                     (view.size(0) == 1 || view.stride(0) >= view.size(1) * view.size(2)),
                 "rope: ", what, " has strides ", view.stride(0), ", ", view.stride(1), ", ",
                 view.stride(2), "; expected contiguous rows");
}

}  // namespace

void rope_table(ConstTensorView positions, std::span<const double> frequencies, double factor,
                TensorView cosines, TensorView sines, const Stream& stream) {
  LONGHAUL_CHECK(cosines.dims() == 2, "rope_table: cosines has ", cosines.dims(),
                 " dims; expected 2");
  const std::int64_t rows = cosines.size(0), half = cosines.size(1);
  LONGHAUL_CHECK(half == std::ssize(frequencies), "rope_table: cosines has ", half,
                 " columns; expected ", frequencies.size(), ", one a frequency");
  detail::require_shape("rope_table", "positions", positions, {rows});
  detail::require_dtype("rope_table", "positions", positions, {DType::int32, DType::int64});
  detail::require_shape("rope_table", "cosines", cosines, {rows, half});
  detail::require_shape("rope_table", "sines", sines, {rows, half});
  if (detail::on_cuda(stream))
    return detail::cuda_rope_table(positions, frequencies, factor, cosines, sines, stream);
  detail::count_bytes(stream, {cosines, sines});
  detail::cpu_rope_table(positions, frequencies, factor, cosines, sines, stream);
}

void rope(ConstTensorView x, ConstTensorView cosines, ConstTensorView sines, Rotation rotation,
          TensorView y, const Stream& stream) {
  LONGHAUL_CHECK(x.dims() == 3 && cosines.dims() == 2 && 2 * cosines.size(1) <= x.size(2),
                 "rope: x has ", x.dims(), " dims, tables ", cosines.dims(),
                 "; expected x[rows, heads, D] and tables [rows, R/2], R <= D");
  const std::int64_t rows = x.size(0), half = cosines.size(1);
  require_heads("x", x, x);
  require_heads("y", y, x);
  detail::require_shape("rope", "cosines", cosines, {rows, half});
  detail::require_shape("rope", "sines", sines, {rows, half});
  if (detail::on_cuda(stream)) return detail::cuda_rope(x, cosines, sines, rotation, y, stream);
  detail::count_bytes(stream, {x, y});
  detail::cpu_rope(x, cosines, sines, rotation, y, stream);
}

}  // namespace longhaul::runtime::ops
