#include "attention/block_impl.h"
#include "runtime/error.h"

namespace longhaul::attention::detail {
namespace {

[[noreturn]] void no_cuda() {
  runtime::fail(
      runtime::ExitCode::launch,
      "this build has no CUDA attention kernels; build with LONGHAUL_CUDA=ON or use a CPU stream");
}

}  // namespace

std::shared_ptr<const BlockPlan> cuda_plan_forward(std::vector<Slice>, const BlockShape&,
                                                   const Scoring&, const BlockPlace&) {
  no_cuda();
}
std::shared_ptr<const BlockPlan> cuda_plan_backward(std::vector<Slice>, const BlockShape&,
                                                    const Scoring&, const BlockPlace&) {
  no_cuda();
}
void cuda_block_delta(runtime::ConstTensorView, runtime::ConstTensorView, runtime::TensorView,
                      const runtime::Stream&) {
  no_cuda();
}
void cuda_merge(runtime::ConstTensorView, runtime::ConstTensorView, runtime::TensorView,
                runtime::TensorView, const runtime::Stream&) {
  no_cuda();
}
void cuda_apply_sinks(runtime::TensorView, runtime::TensorView, runtime::ConstTensorView,
                      const runtime::Stream&) {
  no_cuda();
}
void cuda_sinks_backward(runtime::ConstTensorView, runtime::ConstTensorView,
                         runtime::ConstTensorView, runtime::TensorView, const runtime::Stream&) {
  no_cuda();
}

}  // namespace longhaul::attention::detail
