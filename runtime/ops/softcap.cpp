#include "runtime/ops/softcap.h"

#include <cmath>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void softcap(TensorView x, double cap, const Stream& stream) {
  LONGHAUL_CHECK(x.contiguous(), "softcap: x must be contiguous");
  detail::require_dtype("softcap", "x", x, {DType::float32});
  LONGHAUL_CHECK(cap > 0 && std::isfinite(cap), "softcap of ", cap,
                 "; expected a finite number above 0");
  if (detail::on_cuda(stream)) return detail::cuda_softcap(x, cap, stream);
  detail::count_bytes(stream, {x, x});
  detail::cpu_softcap(x, cap, stream);
}

}  // namespace longhaul::runtime::ops
