#include "models/layer_types.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace longhaul::models {
namespace {

using attention::HeadMasks;
using attention::Mask;

const std::vector<std::string> kMixed{"sliding_attention", "full_attention", "sliding_attention",
                                      "sliding_attention"};

TEST(LayerTypes, KindsComeInTheOrderOfTheirLayers) {
  const LayerMasks mixed(kMixed, 5, 4);
  ASSERT_EQ(mixed.kinds.size(), 2u);
  EXPECT_EQ(mixed.kinds[0].window, 5);
  EXPECT_EQ(mixed.kinds[0].layers, 3);
  EXPECT_EQ(mixed.kinds[1].window, std::nullopt);
  EXPECT_EQ(mixed.kinds[1].layers, 1);
  EXPECT_EQ(mixed.of_layer, (std::vector<std::size_t>{0, 1, 0, 0}));
  const LayerMasks plain({}, 0, 3);
  ASSERT_EQ(plain.kinds.size(), 1u);
  EXPECT_EQ(plain.kinds[0].window, std::nullopt);
  EXPECT_EQ(plain.kinds[0].layers, 3);
}

TEST(LayerTypes, RefusesWhatCannotBe) {
  const auto expect = [](const std::string& part, const std::vector<std::string>& types,
                         std::int64_t window, std::int64_t layers) {
    test::expect_error(runtime::ExitCode::config, part, [&] { LayerMasks(types, window, layers); });
  };
  expect("num_hidden_layers = 5", kMixed, 5, 5);
  expect("sliding_window is 0", kMixed, 0, 4);
  expect("layer_types[1] is 'linear_attention'", {"full_attention", "linear_attention"}, 5, 2);
}

TEST(LayerTypes, AWindowIsWhatTheDefinitionSays) {
  // Query i sees key j of its document when i - window < j <= i.
  const std::int64_t offsets[] = {0, 4, 5, 12, 30};
  const Mask data = Mask::documents(offsets);
  for (const std::int64_t window : {1, 2, 7, 30, 1000}) {
    const Mask sliding = MaskKind{window, 1}.of(data);
    std::int64_t pairs = 0;
    for (std::size_t document = 0; document + 1 < std::size(offsets); ++document) {
      for (std::int64_t i = offsets[document]; i < offsets[document + 1]; ++i) {
        for (std::int64_t j = offsets[document]; j <= i; ++j) {
          if (j <= i - window) continue;
          ++pairs;
          const attention::Run query{i, 1, 1}, key{j, 1, 1};
          EXPECT_TRUE(any_visible(sliding, {&query, 1}, {&key, 1})) << i << " " << j;
        }
      }
    }
    EXPECT_EQ(sliding.area(), pairs) << window;
  }
  EXPECT_EQ(MaskKind{}.of(data), data);
  test::expect_error(runtime::ExitCode::internal, "not causal", [] {
    MaskKind{3, 1}.of(Mask::full(8));
  });
}

TEST(LayerTypes, LayersStandInThePlaceOfHeads) {
  const LayerMasks mixed(kMixed, 3, 4);
  const Mask data = Mask::causal(20);
  const Mask sliding = mixed.kinds[0].of(data);
  EXPECT_EQ(masks_of_layers({sliding, data}, mixed.kinds).digest(),
            HeadMasks::per_head({sliding, sliding, sliding, data}).digest());
  const LayerMasks plain({}, 0, 4);
  EXPECT_TRUE(masks_of_layers({data}, plain.kinds).shared());
}

}  // namespace
}  // namespace longhaul::models
