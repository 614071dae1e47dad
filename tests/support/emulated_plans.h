#pragma once
// The CUDA plans of attention/ where their kernels run on the host (support/cuda_emulation).

#include "attention/block_impl.h"
#include "tests/support/block_runner.h"

namespace longhaul::test {

/// Block calls by plans of cuda_plan_forward() and cuda_plan_backward(), for one kind of kernels at
/// a time. Kernels read a plan's own table, here on the host: plans live as long as this.
class EmulatedPlans {
 public:
  explicit EmulatedPlans(attention::Kernels kernels);
  ~EmulatedPlans();
  EmulatedPlans(const EmulatedPlans&) = delete;
  EmulatedPlans& operator=(const EmulatedPlans&) = delete;
  BlockDevice device() const;

 private:
  runtime::Stream stream_;
};

}  // namespace longhaul::test
