// Linear attention has no CUDA kernels, in any build.
#include "attention/linear_impl.h"
#include "runtime/error.h"

namespace longhaul::attention::detail {
namespace {

[[noreturn]] void no_kernel() {
  runtime::fail(runtime::ExitCode::config,
                "linear attention has no CUDA kernel; use [device] kind = cpu");
}

}  // namespace

std::shared_ptr<const LinearPlan> make_cuda_linear_plan(LinearPass, const LinearShape&,
                                                        const Recurrence&,
                                                        std::vector<std::int64_t>,
                                                        const BlockPlace&) {
  no_kernel();
}
void cuda_fold(const StateMap&, runtime::ConstTensorView, runtime::ConstTensorView,
               runtime::TensorView, const runtime::Stream&) {
  no_kernel();
}

}  // namespace longhaul::attention::detail
