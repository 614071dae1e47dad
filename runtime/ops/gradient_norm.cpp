#include "runtime/ops/gradient_norm.h"

#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void squares_by_chunk(ConstTensorView values, TensorView sums, const Stream& stream) {
  const std::int64_t n = values.elements();
  detail::require_shape("squares_by_chunk", "values", values, {n});
  detail::require_dtype("squares_by_chunk", "values", values, {DType::float32});
  detail::require_shape("squares_by_chunk", "sums", sums, {norm_chunks(n)});
  detail::require_dtype("squares_by_chunk", "sums", sums, {DType::float64});
  if (detail::on_cuda(stream)) return detail::cuda_squares_by_chunk(values, sums, stream);
  detail::count_bytes(stream, {values});
  detail::cpu_squares_by_chunk(values, sums, stream);
}

void norm_of_chunks(ConstTensorView sums, TensorView norm, const Stream& stream) {
  detail::require_shape("norm_of_chunks", "sums", sums, {sums.elements()});
  detail::require_dtype("norm_of_chunks", "sums", sums, {DType::float64});
  detail::require_shape("norm_of_chunks", "norm", norm, {1});
  detail::require_dtype("norm_of_chunks", "norm", norm, {DType::float64});
  if (detail::on_cuda(stream)) return detail::cuda_norm_of_chunks(sums, norm, stream);
  detail::cpu_norm_of_chunks(sums, norm, stream);
}

void clip_factor(ConstTensorView norm, double max_norm, std::int64_t step, TensorView factor,
                 const Stream& stream) {
  detail::require_shape("clip_factor", "norm", norm, {1});
  detail::require_dtype("clip_factor", "norm", norm, {DType::float64});
  detail::require_shape("clip_factor", "factor", factor, {1});
  detail::require_dtype("clip_factor", "factor", factor, {DType::float64});
  if (detail::on_cuda(stream))
    return detail::cuda_clip_factor(norm, max_norm, step, factor, stream);
  detail::cpu_clip_factor(norm, max_norm, step, factor, stream);
}

void require_finite_norm(double norm, std::int64_t step) {
  if (std::isfinite(norm)) return;
  fail(ExitCode::internal, "the gradient norm of step ", step, " is ", norm,
       "; nothing was updated. Lower the learning rate or max_norm, or look for bad data");
}

}  // namespace longhaul::runtime::ops
