#include "runtime/ops/adamw.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void adamw(const AdamWFactors& factors, ConstTensorView gradient, ConstTensorView gradient_factor,
           TensorView value, TensorView first_moment, TensorView second_moment,
           const Stream& stream) {
  LONGHAUL_CHECK(factors.step >= 1, "adamw: step is ", factors.step, "; expected at least 1");
  const std::int64_t n = value.elements();
  detail::require_shape("adamw", "value", value, {n});
  detail::require_shape("adamw", "gradient", gradient, {n});
  detail::require_shape("adamw", "first_moment", first_moment, {n});
  detail::require_shape("adamw", "second_moment", second_moment, {n});
  detail::require_shape("adamw", "gradient_factor", gradient_factor, {1});
  if (detail::on_cuda(stream))
    return detail::cuda_adamw(factors, gradient, gradient_factor, value, first_moment,
                              second_moment, stream);
  detail::cpu_adamw(factors, gradient, gradient_factor, value, first_moment, second_moment, stream);
}

}  // namespace longhaul::runtime::ops
