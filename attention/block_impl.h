#pragma once
// What block.cpp calls after it has checked the arguments: one function of each kind a device.
// Every function only enqueues. `bands` are tightened, not empty and sorted; all sizes may be zero.

#include <vector>

#include "attention/block.h"

namespace longhaul::attention::detail {

void cpu_block_forward(runtime::ConstTensorView q, runtime::ConstTensorView k,
                       runtime::ConstTensorView v, std::vector<Slice> bands, float scale,
                       runtime::TensorView out, runtime::TensorView lse, Mode mode,
                       const runtime::Stream& stream);
void cpu_block_backward(const BlockBackwardInputs& inputs, std::vector<Slice> bands, float scale,
                        runtime::TensorView dq, Mode dq_mode, runtime::TensorView dk,
                        runtime::TensorView dv, Mode dkv_mode, const runtime::Stream& stream);
void cpu_block_delta(runtime::ConstTensorView out, runtime::ConstTensorView dout,
                     runtime::TensorView delta, const runtime::Stream& stream);
void cpu_merge(runtime::ConstTensorView src_out, runtime::ConstTensorView src_lse,
               runtime::TensorView dst_out, runtime::TensorView dst_lse,
               const runtime::Stream& stream);

// block_cuda.cu, or block_no_cuda.cpp (throws Error(launch)) in a CPU build.
void cuda_block_forward(runtime::ConstTensorView q, runtime::ConstTensorView k,
                        runtime::ConstTensorView v, std::vector<Slice> bands, float scale,
                        runtime::TensorView out, runtime::TensorView lse, Mode mode,
                        const runtime::Stream& stream);
void cuda_block_backward(const BlockBackwardInputs& inputs, std::vector<Slice> bands, float scale,
                         runtime::TensorView dq, Mode dq_mode, runtime::TensorView dk,
                         runtime::TensorView dv, Mode dkv_mode, const runtime::Stream& stream);
void cuda_block_delta(runtime::ConstTensorView out, runtime::ConstTensorView dout,
                      runtime::TensorView delta, const runtime::Stream& stream);
void cuda_merge(runtime::ConstTensorView src_out, runtime::ConstTensorView src_lse,
                runtime::TensorView dst_out, runtime::TensorView dst_lse,
                const runtime::Stream& stream);

}  // namespace longhaul::attention::detail
