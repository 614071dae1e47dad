#pragma once
// What linear.cpp calls after it has checked the arguments: one function of each kind a device.
// Folds only enqueue. All sizes may be zero.

#include "attention/linear.h"

namespace longhaul::attention::detail {

std::shared_ptr<const LinearPlan> make_cpu_linear_plan(LinearPass pass, const LinearShape& shape,
                                                       const Recurrence& recurrence,
                                                       std::vector<std::int64_t> starts,
                                                       const BlockPlace& place);
void cpu_fold(const StateMap& how, runtime::ConstTensorView in, runtime::ConstTensorView addend,
              runtime::TensorView out, const runtime::Stream& stream);

std::shared_ptr<const LinearPlan> make_cuda_linear_plan(LinearPass pass, const LinearShape& shape,
                                                        const Recurrence& recurrence,
                                                        std::vector<std::int64_t> starts,
                                                        const BlockPlace& place);
void cuda_fold(const StateMap& how, runtime::ConstTensorView in, runtime::ConstTensorView addend,
               runtime::TensorView out, const runtime::Stream& stream);

}  // namespace longhaul::attention::detail
