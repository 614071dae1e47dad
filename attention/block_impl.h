#pragma once
// What block.cpp calls after it has checked the arguments: one function of each kind a device.
// Every function only enqueues. `bands` are tightened, not empty and sorted; all sizes may be zero.

#include <vector>

#include "attention/block.h"

namespace longhaul::attention::detail {

void cpu_block_forward(runtime::ConstTensorView q, runtime::ConstTensorView k,
                       runtime::ConstTensorView v, std::vector<Slice> bands, const Scoring& scoring,
                       runtime::TensorView out, runtime::TensorView lse, Mode mode,
                       const runtime::Stream& stream);
void cpu_block_backward(const BlockBackwardInputs& inputs, std::vector<Slice> bands,
                        const Scoring& scoring, runtime::TensorView dq, Mode dq_mode,
                        runtime::TensorView dk, runtime::TensorView dv, Mode dkv_mode,
                        const runtime::Stream& stream);
void cpu_block_delta(runtime::ConstTensorView out, runtime::ConstTensorView dout,
                     runtime::TensorView delta, const runtime::Stream& stream);
void cpu_merge(runtime::ConstTensorView src_out, runtime::ConstTensorView src_lse,
               runtime::TensorView dst_out, runtime::TensorView dst_lse,
               const runtime::Stream& stream);
void cpu_apply_sinks(runtime::TensorView out, runtime::TensorView lse,
                     runtime::ConstTensorView sinks, const runtime::Stream& stream);
void cpu_sinks_backward(runtime::ConstTensorView lse, runtime::ConstTensorView delta,
                        runtime::ConstTensorView sinks, runtime::TensorView dsinks,
                        const runtime::Stream& stream);

// block_*_cuda.cu, or block_no_cuda.cpp (throws Error(launch)) in a CPU build.
void cuda_block_forward(runtime::ConstTensorView q, runtime::ConstTensorView k,
                        runtime::ConstTensorView v, std::vector<Slice> bands,
                        const Scoring& scoring, runtime::TensorView out, runtime::TensorView lse,
                        Mode mode, const runtime::Stream& stream);
void cuda_block_backward(const BlockBackwardInputs& inputs, std::vector<Slice> bands,
                         const Scoring& scoring, runtime::TensorView dq, Mode dq_mode,
                         runtime::TensorView dk, runtime::TensorView dv, Mode dkv_mode,
                         const runtime::Stream& stream);
void cuda_block_delta(runtime::ConstTensorView out, runtime::ConstTensorView dout,
                      runtime::TensorView delta, const runtime::Stream& stream);
void cuda_merge(runtime::ConstTensorView src_out, runtime::ConstTensorView src_lse,
                runtime::TensorView dst_out, runtime::TensorView dst_lse,
                const runtime::Stream& stream);
void cuda_apply_sinks(runtime::TensorView out, runtime::TensorView lse,
                      runtime::ConstTensorView sinks, const runtime::Stream& stream);
void cuda_sinks_backward(runtime::ConstTensorView lse, runtime::ConstTensorView delta,
                         runtime::ConstTensorView sinks, runtime::TensorView dsinks,
                         const runtime::Stream& stream);

}  // namespace longhaul::attention::detail
