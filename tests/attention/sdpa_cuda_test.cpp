// Block calls through cuDNN on a device, against the fp64 reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

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
void forward(ConstTensorView q, ConstTensorView k, ConstTensorView v,
             const std::vector<Slice>& bands, const Scoring& scoring, TensorView out,
             TensorView lse, Mode mode, const Stream& stream) {
  run_once(plan_block(Pass::forward, bands, test::shape_shown(q, k, v), scoring, by_cudnn(stream)),
           BlockForwardTensors{q, k, v, out, lse, mode}, stream);
}
void backward(const BlockBackwardInputs& in, const std::vector<Slice>& bands,
              const Scoring& scoring, TensorView dq, Mode dq_mode, TensorView dk, TensorView dv,
              Mode dkv_mode, const Stream& stream) {
  run_once(plan_block(Pass::backward, bands, test::shape_shown(in.q, in.k, in.v), scoring,
                      by_cudnn(stream)),
           BlockBackwardTensors{in, dq, dq_mode, dk, dv, dkv_mode}, stream);
}

TEST(SdpaCuda, KeepsTheBlockContract) {
  LONGHAUL_NEEDS_CUDNN();
  test::expect_sdpa_contract({Stream::cuda("kernel", 0), forward, backward}, test::sdpa_cases());
}

TEST(SdpaCuda, KeepsTheBlockContractMergedAndStrided) {
  LONGHAUL_NEEDS_CUDNN();
  test::expect_sdpa_contract({Stream::cuda("kernel", 0), forward, backward},
                             test::sdpa_bound_otherwise());
}

/// Calls of a size that trains, beside the exact kernels, which are held to the reference.
TEST(SdpaCuda, LargeCallsAreTheExactKernels) {
  LONGHAUL_NEEDS_CUDNN();
  constexpr std::int64_t kRows = 8192;
  std::vector<Slice> documents;
  for (std::int64_t at = 0, length = 3000; at < kRows; length = (length * 7 + 5) % 997 + 1) {
    const std::int64_t end = std::min(at + length, kRows);
    documents.push_back({at, end, at, end, -kUnbounded, 0});
    at = end;
  }
  const std::pair<const char*, std::vector<Slice>> masks[] = {
      {"causal", {{0, kRows, 0, kRows, -kUnbounded, 0}}},
      {"window", {{0, kRows, 0, kRows, -1023, 0}}},
      {"a hop of zigzag", {{0, kRows, 0, kRows / 2}}},
      {"a window's hop", {{0, kRows, 0, kRows, 5000, kUnbounded}}},
      {"documents", documents}};
  const Stream stream = Stream::cuda("kernel", 0);
  for (const auto& [name, bands] : masks) {
    SCOPED_TRACE(name);
    test::AttentionCase which{kRows, kRows, 8, 2, 128, 128, bands};
    which.bf16 = true;
    which.fill(5);
    const auto got = test::run_block({stream, forward, backward}, which);
    EXPECT_TRUE(test::run_block({stream, forward, backward}, which) == got);
    const auto exact = test::run_block({stream}, which);
    const auto near = [](const char* what, const std::vector<float>& a, const std::vector<float>& b,
                         double bound) {
      EXPECT_LE(test::relative_error(a, std::vector<double>(b.begin(), b.end())), bound) << what;
    };
    near("out", got.out, exact.out, 4e-3);
    near("dq", got.dq, exact.dq, 6e-3);
    near("dk", got.dk, exact.dk, 6e-3);
    near("dv", got.dv, exact.dv, 6e-3);
    for (std::size_t i = 0; i < got.lse.size(); ++i) {
      if (std::isinf(exact.lse[i]))
        ASSERT_EQ(got.lse[i], exact.lse[i]) << "lse " << i;
      else
        ASSERT_NEAR(got.lse[i], exact.lse[i], 1e-5 * std::max(1.0f, std::abs(exact.lse[i])))
            << "lse " << i;
    }
  }
}

}  // namespace
}  // namespace longhaul::attention
