// Where a step's time goes: parts by name, their rates and ceilings, by hand.
#include "launch/step_parts_impl.h"

#include <gtest/gtest.h>

#include <numeric>

namespace longhaul::launch {
namespace {

using runtime::PartTimes;

/// Two steps of 5 s: what a stream says of them.
StepParts two_steps() {
  const std::vector<PartTimes> times{
      {"matmul", 8, 4.0, {.flops = 400, .bytes = 0}},
      {"block_forward", 2, 1.0, {}},
      {"block_backward", 2, 1.0, {}},
      {"adamw", 2, 1.0, {.flops = 0, .bytes = 10}},
      {"gradient_norm", 6, 0.5, {.flops = 0, .bytes = 6}},
      {"work_clock", 4, 0.5, {}},
      {runtime::kWaitingPart, 2, 1.0, {}},
  };
  return step_parts(times, 2, 10.0, 30,
                    {.kernel_flops = 50, .product_flops = 200, .triad_bytes = 20, .cores = 2});
}

const StepPart& part(const StepParts& all, const std::string& name) {
  const auto found = std::ranges::find(all.parts, name, &StepPart::name);
  EXPECT_NE(found, all.parts.end()) << name;
  return *found;
}

TEST(StepParts, AreThoseOfOneStepAndAddUpToIt) {
  const StepParts all = two_steps();
  EXPECT_EQ(all.seconds, 5);
  EXPECT_EQ(all.tasks(), 13);
  EXPECT_DOUBLE_EQ(std::accumulate(all.parts.begin(), all.parts.end(), 0.0,
                                   [](double sum, const StepPart& of) { return sum + of.seconds; }),
                   5);
  EXPECT_EQ(part(all, "matmul").seconds, 2);
  EXPECT_EQ(part(all, "attention").seconds, 1);
  EXPECT_EQ(part(all, "attention").tasks, 2);
  EXPECT_EQ(part(all, "optimizer").seconds, 0.75);
  EXPECT_EQ(part(all, "communication").seconds, 0.5);
  EXPECT_EQ(part(all, "idle").seconds, 0.5);
  EXPECT_EQ(all.parts.front().name, "matmul");
}

TEST(StepParts, CeilingsAreWeightedByTime) {
  const StepParts all = two_steps();
  EXPECT_DOUBLE_EQ(part(all, "matmul").least_seconds.value(), 1);       // 200 flops at 200
  EXPECT_DOUBLE_EQ(part(all, "attention").least_seconds.value(), 0.6);  // 30 at 50
  EXPECT_DOUBLE_EQ(part(all, "optimizer").least_seconds.value(), 0.4);  // 8 bytes at 20
  EXPECT_FALSE(part(all, "work_clock").least_seconds);
  EXPECT_FALSE(part(all, "idle").least_seconds);
  EXPECT_DOUBLE_EQ(all.of_ceiling(), 2.0 / 5);
  const std::string text = text_of(all);
  EXPECT_NE(text.find("work_clock"), std::string::npos) << text;
  EXPECT_NE(text.find("0.400\n"), std::string::npos) << text;
}

}  // namespace
}  // namespace longhaul::launch
