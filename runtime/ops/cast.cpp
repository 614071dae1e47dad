#include "runtime/ops/cast.h"

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void cast(ConstTensorView src, TensorView dst, const Stream& stream) {
  LONGHAUL_CHECK(src.elements() == dst.elements() && src.contiguous() && dst.contiguous(),
                 "cast of ", src.elements(), " elements to ", dst.elements(),
                 "; both must be contiguous");
  if (detail::on_cuda(stream)) return detail::cuda_cast(src, dst, stream);
  detail::count_bytes(stream, {src, dst});
  detail::cpu_cast(src, dst, stream);
}

}  // namespace longhaul::runtime::ops
