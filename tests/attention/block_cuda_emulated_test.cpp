// The source of the CUDA block kernels, compiled for the host (support/cuda_emulation): the same
// arithmetic, tiles, masks and barriers, without a device.
#include <gtest/gtest.h>

#include <algorithm>

#include "attention/block_impl.h"
#include "tests/support/block_runner.h"

namespace longhaul::attention {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

/// Kernels read the plan's own table, here on the host: plans live until the test ends.
std::vector<std::shared_ptr<const BlockPlan>>& plans() {
  static std::vector<std::shared_ptr<const BlockPlan>> all;
  return all;
}

/// As plan_block() hands them over.
std::vector<Slice> sorted(const std::vector<Slice>& bands) {
  std::vector<Slice> kept;
  for (const Slice& band : bands) {
    if (area(band) > 0) kept.push_back(tightened(band));
  }
  std::ranges::sort(kept, [](const Slice& a, const Slice& b) {
    return std::pair(a.q_begin, a.k_begin) < std::pair(b.q_begin, b.k_begin);
  });
  return kept;
}

BlockShape shape_of(ConstTensorView q, ConstTensorView k, ConstTensorView v) {
  return {q.size(0), k.size(0), q.size(1), k.size(1), q.size(2), v.size(2), q.dtype()};
}

void emulated_forward(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                      const std::vector<Slice>& bands, const Scoring& scoring, TensorView out,
                      TensorView lse, Mode mode, const Stream& stream) {
  plans().push_back(
      detail::cuda_plan_forward(sorted(bands), shape_of(q, k, v), scoring, place_of(stream)));
  run_once(plans().back(), BlockForwardTensors{q, k, v, out, lse, mode}, stream);
}

void emulated_backward(const BlockBackwardInputs& in, const std::vector<Slice>& bands,
                       const Scoring& scoring, TensorView dq, Mode dq_mode, TensorView dk,
                       TensorView dv, Mode dkv_mode, const Stream& stream) {
  plans().push_back(detail::cuda_plan_backward(sorted(bands), shape_of(in.q, in.k, in.v), scoring,
                                               place_of(stream)));
  run_once(plans().back(), BlockBackwardTensors{in, dq, dq_mode, dk, dv, dkv_mode}, stream);
}

TEST(BlockCudaEmulated, KeepsTheBlockContract) {
  test::expect_block_contract(
      {Stream::cpu("emulated"), emulated_forward, emulated_backward, detail::cuda_block_delta,
       detail::cuda_merge, detail::cuda_apply_sinks, detail::cuda_sinks_backward},
      true);
}

}  // namespace
}  // namespace longhaul::attention
