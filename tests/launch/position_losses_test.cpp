// Losses by position, against sums over rows one by one.
#include "launch/position_losses.h"

#include <gtest/gtest.h>

#include <cmath>

namespace longhaul::launch {
namespace {

TEST(PositionLosses, CountsEveryLabelInTheBucketOfItsPosition) {
  const runtime::Rows rows{.tokens = {1, 2, 3, 4, 5, 6},
                           .labels = {2, -1, 4, 5, 6, 0},
                           .positions = {0, 6, 7, 8, 126, 127},
                           .label_weights = {1, 1, 0.5f, 2, 0, 3}};
  const std::vector<float> loss{1, 100, 2, 3, 100, 4};
  const std::vector<std::uint8_t> correct{1, 1, 0, 1, 1, 0};
  PositionLosses losses(std::vector<std::int64_t>{0, 7, 8, 127});
  losses.add(rows, loss, correct);
  const std::vector<PositionLoss> expected{
      {0, 1, 1, 1.0, 1.0}, {7, 1, 0, 0.5, 1.0}, {8, 1, 1, 2.0, 6.0}, {127, 1, 0, 3.0, 12.0}};
  EXPECT_EQ(std::vector<PositionLoss>(losses.buckets().begin(), losses.buckets().end()), expected);
  EXPECT_DOUBLE_EQ(losses.all().loss(), 20.0 / 6.5);
  EXPECT_DOUBLE_EQ(losses.all().accuracy(), 0.5);

  PositionLosses sums = losses.empty_copy();
  EXPECT_EQ(sums.all(), PositionLoss());
  sums.add_numbers(losses.numbers());
  EXPECT_EQ(sums.all(), losses.all());
  sums.add_numbers(losses.numbers());
  EXPECT_EQ(sums.all().labels, 2 * losses.all().labels);
  EXPECT_EQ(sums.buckets()[2].loss_sum, 12.0);
}

TEST(PositionLosses, LabelsWithoutWeightsWeighOneAndNoneIsNotANumber) {
  PositionLosses losses(std::vector<std::int64_t>{0, 4});
  losses.add({.tokens = {1, 2}, .labels = {3, 4}, .positions = {0, 3}, .label_weights = {}},
             std::vector<float>{2, 4}, std::vector<std::uint8_t>{0, 1});
  EXPECT_DOUBLE_EQ(losses.buckets()[0].loss(), 3);
  EXPECT_TRUE(std::isnan(losses.buckets()[1].loss()));
  EXPECT_TRUE(std::isnan(losses.buckets()[1].accuracy()));
}

TEST(PositionLosses, BucketsDoubleFrom128UpToTheSequence) {
  EXPECT_EQ(position_buckets(1), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(position_buckets(128), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(position_buckets(129), (std::vector<std::int64_t>{0, 128}));
  EXPECT_EQ(position_buckets(1000), (std::vector<std::int64_t>{0, 128, 256, 512}));
}

}  // namespace
}  // namespace longhaul::launch
