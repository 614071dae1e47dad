#include "attention/linear_impl.h"
#include "runtime/error.h"
namespace longhaul::attention::detail {
std::shared_ptr<const LinearPlan> make_cpu_linear_plan(LinearPass, const LinearShape&, const Recurrence&, std::vector<std::int64_t>, const BlockPlace&) { runtime::fail(runtime::ExitCode::internal, "tmp"); }
void cpu_fold(const StateMap&, runtime::ConstTensorView, runtime::ConstTensorView, runtime::TensorView, const runtime::Stream&) {}
}
