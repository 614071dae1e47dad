#pragma once
// What block.cpp and block_plan.cpp call after they have checked the arguments: one function of
// each kind a device. Plans keep `bands`, which are tightened, not empty and sorted; the other
// functions only enqueue. All sizes may be zero.

#include <memory>
#include <vector>

#include "attention/block_plan.h"

namespace longhaul::attention::detail {

std::shared_ptr<const BlockPlan> cpu_plan_forward(std::vector<Slice> bands, const BlockShape& shape,
                                                  const Scoring& scoring, const BlockPlace& place);
std::shared_ptr<const BlockPlan> cpu_plan_backward(std::vector<Slice> bands,
                                                   const BlockShape& shape, const Scoring& scoring,
                                                   const BlockPlace& place);
/// Whether those two leave a call to AMX tiles: bfloat16 at the level amx, plain softmax. What has
/// a softcap or is a sigmoid is widened to float32, as without tiles.
bool amx_computes(const BlockShape& shape, const Scoring& scoring);
std::shared_ptr<const BlockPlan> amx_plan_forward(const std::vector<Slice>& bands,
                                                  const BlockShape& shape, const Scoring& scoring,
                                                  const BlockPlace& place);
std::shared_ptr<const BlockPlan> amx_plan_backward(const std::vector<Slice>& bands,
                                                   const BlockShape& shape, const Scoring& scoring,
                                                   const BlockPlace& place);
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

/// Of either pass, on a place with a pretence, on the CPU.
std::shared_ptr<const BlockPlan> pretended_plan(Pass pass, const std::vector<Slice>& bands,
                                                const BlockShape& shape, const Scoring& scoring,
                                                const BlockPlace& place);

// block_*_cuda.cu, or block_no_cuda.cpp (throws Error(launch)) in a CPU build.
std::shared_ptr<const BlockPlan> cuda_plan_forward(std::vector<Slice> bands,
                                                   const BlockShape& shape, const Scoring& scoring,
                                                   const BlockPlace& place);
std::shared_ptr<const BlockPlan> cuda_plan_backward(std::vector<Slice> bands,
                                                    const BlockShape& shape, const Scoring& scoring,
                                                    const BlockPlace& place);
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
