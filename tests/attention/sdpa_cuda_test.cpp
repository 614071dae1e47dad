// Block calls through cuDNN on a device, against the fp64 reference.
#include <gtest/gtest.h>

#include "attention/sdpa.h"
#include "tests/support/gpu.h"
#include "tests/support/sdpa_cases.h"

#define LONGHAUL_NEEDS_CUDNN()                                                      \
  do {                                                                              \
    LONGHAUL_NEEDS_GPU();                                                           \
    if (const std::string reason = ::longhaul::attention::detail::no_sdpa_reason(); \
        !reason.empty())                                                            \
      GTEST_SKIP() << reason;                                                       \
  } while (false)

namespace longhaul::attention {
namespace {

using runtime::ConstTensorView;
using runtime::Stream;
using runtime::TensorView;

/// As block_forward() and block_backward(), by cuDNN alone. Deterministic: runs are compared.
BlockPlace by_cudnn(const Stream& stream) {
  BlockPlace place = place_of(stream);
  place.kernels = Kernels::cudnn;
  place.deterministic = true;
  return place;
}
BlockShape shape_of(ConstTensorView q, ConstTensorView k, ConstTensorView v) {
  return {q.size(0), k.size(0), q.size(1), k.size(1), q.size(2), v.size(2), q.dtype()};
}

void forward(ConstTensorView q, ConstTensorView k, ConstTensorView v,
             const std::vector<Slice>& bands, const Scoring& scoring, TensorView out,
             TensorView lse, Mode mode, const Stream& stream) {
  run_once(plan_block(Pass::forward, bands, shape_of(q, k, v), scoring, by_cudnn(stream)),
           BlockForwardTensors{q, k, v, out, lse, mode}, stream);
}
void backward(const BlockBackwardInputs& in, const std::vector<Slice>& bands,
              const Scoring& scoring, TensorView dq, Mode dq_mode, TensorView dk, TensorView dv,
              Mode dkv_mode, const Stream& stream) {
  run_once(plan_block(Pass::backward, bands, shape_of(in.q, in.k, in.v), scoring, by_cudnn(stream)),
           BlockBackwardTensors{in, dq, dq_mode, dk, dv, dkv_mode}, stream);
}

TEST(SdpaCuda, KeepsTheBlockContract) {
  LONGHAUL_NEEDS_CUDNN();
  test::expect_sdpa_contract({Stream::cuda("kernel", 0), forward, backward}, true);
}

TEST(SdpaCuda, LargerCalls) {
  LONGHAUL_NEEDS_CUDNN();
  test::expect_sdpa_contract({Stream::cuda("kernel", 0), forward, backward}, false);
}

}  // namespace
}  // namespace longhaul::attention
