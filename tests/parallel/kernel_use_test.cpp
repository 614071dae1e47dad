// What share of attention cuDNN computes under the schemes, from their programs alone.
#include "parallel/kernel_use.h"

#include <gtest/gtest.h>

#include "tests/support/document_mixes.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Kernels;
using attention::Mask;
using runtime::DType;

constexpr int kRanks = 8;
const attention::BlockPlace kPlace{{runtime::DeviceKind::cuda, 0}, 1, Kernels::automatic};
const attention::Scoring kScoring{.scale = 0.088f};

KernelUse use_of(const Expression& scheme, const HeadMasks& masks, const Layout& layout,
                 const Shapes& shapes) {
  KernelUse use;
  const SchemeInputs inputs{masks, layout, shapes, {}, {}, scheme};
  for (int rank = 0; rank < kRanks; ++rank) use += kernel_use(inputs, rank, kScoring, kPlace);
  return use;
}

TEST(KernelUse, NineTenthsByCudnnUnderEveryScheme) {
  const std::int64_t tokens = 131072;
  const Shapes shapes{32, 8, 128, 128, DType::bfloat16};
  const auto documents = test::pack(test::made_up_lengths(400, 3), tokens, 1).front();
  const std::pair<const char*, Mask> masks[] = {{"causal", Mask::causal(tokens)},
                                                {"window", Mask::causal(tokens).within(-4095, 0)},
                                                {"documents", Mask::documents(documents)}};
  int tried = 0;
  for (const auto& [mask_name, mask] : masks) {
    for (const LayoutKind kind : {LayoutKind::zigzag, LayoutKind::balanced}) {
      const Layout layout = Layout::make(kind, mask, 1, kRanks);
      for (const Expression& scheme : test::all_schemes(kRanks, shapes.heads, shapes.kv_heads)) {
        SCOPED_TRACE(runtime::concat(mask_name, " over ", name(kind), " by ", scheme.text()));
        if (refuse({scheme, kRanks, shapes.heads, shapes.kv_heads, kind, true, Family::softmax,
                    sees_whole_past(mask)}))
          continue;
        const KernelUse use = use_of(scheme, mask, layout, shapes);
        ++tried;
        for (const auto& paths : {use.forward, use.backward}) {
          EXPECT_EQ(paths.pairs.total(), mask.area() * shapes.heads);
          EXPECT_GE(paths.pairs.by_cudnn(), 0.9);
        }
      }
    }
  }
  EXPECT_GE(tried, 3 * 2 * 8);
}

TEST(KernelUse, AZigzagRingIsOneCallAHop) {
  const Mask mask = Mask::causal(65536);
  const Layout layout = Layout::make(LayoutKind::zigzag, mask, 1, kRanks);
  const Shapes shapes{32, 8, 128, 128, DType::bfloat16};
  const KernelUse use = use_of("ring", mask, layout, shapes);
  EXPECT_EQ(use.forward.calls, kRanks * kRanks);
  EXPECT_EQ(use.backward.calls, kRanks * kRanks);
  EXPECT_EQ(use.forward.pairs.dense, mask.area() * shapes.heads);
}

TEST(KernelUse, SaysWhy) {
  const Mask mask = Mask::causal(8192);
  const Layout layout = Layout::make(LayoutKind::zigzag, mask, 1, kRanks);
  const KernelUse use = use_of("ring", mask, layout, {8, 8, 64, 64, DType::float32});
  EXPECT_EQ(use.forward.pairs.exact, mask.area() * 8);
  ASSERT_EQ(use.forward.why_exact.size(), 1u);
  EXPECT_EQ(use.forward.why_exact.begin()->first,
            "the activation dtype is float32, cuDNN's kernels take bfloat16");
}

}  // namespace
}  // namespace longhaul::parallel
