// The CPU build's side of tensor_impl.h: what kernels do.
#include "runtime/tensor_impl.h"

namespace longhaul::runtime::detail {
void cuda_copy_elements(ConstTensorView, TensorView, const Stream&) {
  fail(ExitCode::launch, "this build has no CUDA backend");
}
void cuda_accumulate(ConstTensorView, TensorView, const Stream&) {
  fail(ExitCode::launch, "this build has no CUDA backend");
}
void cuda_fill(TensorView, double, const Stream&) {
  fail(ExitCode::launch, "this build has no CUDA backend");
}
void cuda_copy_rows(ConstTensorView, TensorView, const RowList&, const Stream&) {
  fail(ExitCode::launch, "this build has no CUDA backend");
}
void cuda_accumulate_rows(ConstTensorView, TensorView, const RowList&, const Stream&) {
  fail(ExitCode::launch, "this build has no CUDA backend");
}
}  // namespace longhaul::runtime::detail
