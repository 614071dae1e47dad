#include "runtime/ops/scaled.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void scaled(ConstTensorView x, double factor, Write write, TensorView y, const Stream& stream) {
  LONGHAUL_CHECK(x.elements() == y.elements() && x.contiguous() && y.contiguous(), "scaled: x has ",
                 x.elements(), " elements, y ", y.elements(), "; both must be contiguous");
  if (detail::on_cuda(stream)) return detail::cuda_scaled(x, factor, write, y, stream);
  detail::count_bytes(stream, {x, y});
  if (write == Write::add) detail::count_bytes(stream, {y});
  detail::cpu_scaled(x, factor, write, y, stream);
}

}  // namespace longhaul::runtime::ops
