// The CPU build's side of tensor_impl.h: copies.
#include "runtime/tensor_impl.h"

namespace longhaul::runtime::detail {
void cuda_copy(ConstTensorView, TensorView, const Stream&) {
  fail(ExitCode::launch, "this build has no CUDA backend");
}
}  // namespace longhaul::runtime::detail
