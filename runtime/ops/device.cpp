// The choice of device, in a file of its own: tests that run the kernels' source on the host
// provide another one.
#include "runtime/ops/checks.h"

namespace longhaul::runtime::ops::detail {

bool on_cuda(const Stream& stream) { return stream.device().kind == DeviceKind::cuda; }

}  // namespace longhaul::runtime::ops::detail
