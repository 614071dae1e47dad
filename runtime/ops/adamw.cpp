#include "runtime/ops/adamw.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void adamw(const AdamWFactors& factors, ConstTensorView gradient, ConstTensorView gradient_factor,
           const AdamWState& state, const Stream& stream) {
  LONGHAUL_CHECK(factors.step >= 1, "adamw: step is ", factors.step, "; expected at least 1");
  const std::int64_t n = state.value.elements();
  const auto require = [&](const char* what, const ConstTensorView& view, std::int64_t size,
                           DType dtype) {
    detail::require_shape("adamw", what, view, {size});
    detail::require_dtype("adamw", what, view, {dtype});
  };
  require("value", state.value, n, DType::float32);
  require("gradient", gradient, n, DType::float32);
  require("first_moment", state.first_moment, n, DType::float32);
  require("second_moment", state.second_moment, n, DType::float32);
  require("gradient_factor", gradient_factor, 1, DType::float64);
  if (state.rounded.data() != nullptr) require("rounded", state.rounded, n, DType::bfloat16);
  if (detail::on_cuda(stream))
    return detail::cuda_adamw(factors, gradient, gradient_factor, state, stream);
  detail::count_bytes(stream, {gradient, state.value, state.value, state.first_moment,
                               state.first_moment, state.second_moment, state.second_moment});
  if (state.rounded.data() != nullptr) detail::count_bytes(stream, {state.rounded});
  detail::cpu_adamw(factors, gradient, gradient_factor, state, stream);
}

}  // namespace longhaul::runtime::ops
