#include "attention/linear_impl.h"
#include "runtime/error.h"

namespace longhaul::attention::detail {
namespace {

[[noreturn]] void no_cuda() {
  runtime::fail(runtime::ExitCode::config,
                "this build has no CUDA kernel of linear attention; build with LONGHAUL_CUDA=ON or "
                "use [device] kind = cpu");
}

}  // namespace

std::shared_ptr<const LinearPlan> make_cuda_linear_plan(LinearPass, const LinearShape&,
                                                        const Recurrence&,
                                                        std::vector<std::int64_t>,
                                                        const BlockPlace&) {
  no_cuda();
}
void cuda_fold(const StateMap&, runtime::ConstTensorView, runtime::ConstTensorView,
               runtime::TensorView, const runtime::Stream&) {
  no_cuda();
}

}  // namespace longhaul::attention::detail
