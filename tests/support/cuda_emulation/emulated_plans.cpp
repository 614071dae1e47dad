#include "tests/support/emulated_plans.h"

#include <algorithm>

namespace longhaul::test {
namespace {

using attention::BlockPlan;
using attention::Mode;
using attention::Slice;
using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

std::vector<std::shared_ptr<const BlockPlan>> plans;
attention::Kernels kernels;

/// As plan_block() hands them over.
std::vector<Slice> sorted(const std::vector<Slice>& bands) {
  std::vector<Slice> kept;
  for (const Slice& band : bands) {
    if (attention::area(band) > 0) kept.push_back(attention::tightened(band));
  }
  std::ranges::sort(kept, [](const Slice& a, const Slice& b) {
    return std::pair(a.q_begin, a.k_begin) < std::pair(b.q_begin, b.k_begin);
  });
  return kept;
}

attention::BlockPlace place_of(const Stream& stream) {
  attention::BlockPlace place = attention::place_of(stream);
  place.kernels = kernels;
  return place;
}

void forward(ConstTensorView q, ConstTensorView k, ConstTensorView v,
             const std::vector<Slice>& bands, const attention::Scoring& scoring, TensorView out,
             TensorView lse, Mode mode, const Stream& stream) {
  plans.push_back(attention::detail::cuda_plan_forward(sorted(bands), shape_shown(q, k, v), scoring,
                                                       place_of(stream)));
  run_once(plans.back(), attention::BlockForwardTensors{q, k, v, out, lse, mode}, stream);
}

void backward(const attention::BlockBackwardInputs& in, const std::vector<Slice>& bands,
              const attention::Scoring& scoring, TensorView dq, Mode dq_mode, TensorView dk,
              TensorView dv, Mode dkv_mode, const Stream& stream) {
  plans.push_back(attention::detail::cuda_plan_backward(
      sorted(bands), shape_shown(in.q, in.k, in.v), scoring, place_of(stream)));
  run_once(plans.back(), attention::BlockBackwardTensors{in, dq, dq_mode, dk, dv, dkv_mode},
           stream);
}

}  // namespace

EmulatedPlans::EmulatedPlans(attention::Kernels of) : stream_(Stream::cpu("emulated")) {
  kernels = of;
}
EmulatedPlans::~EmulatedPlans() {
  stream_.synchronize(runtime::deadline_in(60));
  plans.clear();
}
BlockDevice EmulatedPlans::device() const {
  using namespace attention::detail;
  return {stream_,    forward,          backward,           cuda_block_delta,
          cuda_merge, cuda_apply_sinks, cuda_sinks_backward};
}

}  // namespace longhaul::test
