#include "runtime/ops/elementwise.h"

#include <algorithm>

#include "runtime/ops/checks.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops {

void add(ConstTensorView a, ConstTensorView b, TensorView sum, const Stream& stream) {
  LONGHAUL_CHECK(std::ranges::equal(a.sizes(), b.sizes()) &&
                     std::ranges::equal(a.sizes(), sum.sizes()) && a.contiguous() &&
                     b.contiguous() && sum.contiguous(),
                 "add takes contiguous views of equal sizes; got ", a.elements(), ", ",
                 b.elements(), " and ", sum.elements(), " elements");
  if (detail::on_cuda(stream)) return detail::cuda_add(a, b, sum, stream);
  detail::cpu_add(a, b, sum, stream);
}

void cast(ConstTensorView src, TensorView dst, const Stream& stream) {
  LONGHAUL_CHECK(src.elements() == dst.elements() && src.contiguous() && dst.contiguous(),
                 "cast of ", src.elements(), " elements to ", dst.elements(),
                 "; both must be contiguous");
  if (detail::on_cuda(stream)) return detail::cuda_cast(src, dst, stream);
  detail::cpu_cast(src, dst, stream);
}

}  // namespace longhaul::runtime::ops
