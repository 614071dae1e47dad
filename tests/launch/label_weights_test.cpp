// Label weights in training: the loss is a weighted mean over all ranks, passes and steps.
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "launch/trainer.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using test::RawSequence;
using test::run_training;

constexpr std::int64_t kVocabulary = 31;
constexpr std::int64_t kSeqLen = 97;

struct Grid {
  std::int64_t data, context;
};

TrainConfig on(Grid grid, std::int64_t micro_batch_size = 1) {
  TrainConfig config = test::small_training(kSeqLen);
  config.parallelism.data_parallel_replicate_degree = grid.data;
  config.parallelism.context_parallel_degree = grid.context;
  config.training.micro_batch_size = micro_batch_size;
  return config;
}

RawSequence plain(std::int64_t number) {
  return test::random_sequence(kVocabulary, kSeqLen, number);
}

/// As a corpus with weights gives it: every second sequence a long prompt, weights of many sizes.
RawSequence weighed(std::int64_t number) {
  RawSequence sequence = plain(number);
  for (std::size_t i = 0; i < sequence.labels.size(); ++i) {
    const bool prompt = number % 2 == 0 && i < 60;
    float weight = prompt ? 0.0f : std::vector{1.0f, 0.25f, 7.0f}[i % 3];
    if (sequence.labels[i] < 0) weight = 0;
    sequence.label_weights.push_back(weight);
  }
  return sequence;
}

void expect_equal_within(const std::vector<StepResult>& a, const std::vector<StepResult>& b,
                         double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t step = 0; step < a.size(); ++step) {
    EXPECT_LE(std::abs(a[step].loss - b[step].loss), tolerance * b[step].loss) << step;
    EXPECT_LE(std::abs(a[step].grad_norm - b[step].grad_norm), tolerance * b[step].grad_norm)
        << step;
    EXPECT_EQ(a[step].labels, b[step].labels);
  }
}

/// Sum of weight * loss over sum of weights, of the four sequences of step 1 under the weights
/// drawn from the seed; from the losses that evaluation gives row by row.
TEST(WeightedTraining, LossIsTheWeightedMean) {
  TrainConfig config = on({1, 1});
  double weighted = 0, weight = 0;
  std::int64_t labels = 0;
  run_training(config, kVocabulary, plain,
               {.steps = 0, .after = [&](Trainer& trainer, auto&) {
                  const test::RawSequences source(plain);
                  for (std::int64_t number = 0; number < 4; ++number) {
                    const models::Evaluation evaluation =
                        trainer.evaluate(source, std::vector{number}).tensors;
                    const RawSequence sequence = weighed(number);
                    // Zigzag over one rank is token order.
                    for (std::size_t i = 0; i < sequence.labels.size(); ++i) {
                      weighted += static_cast<double>(sequence.label_weights[i]) *
                                  static_cast<double>(evaluation.row_loss.as<float>()[i]);
                      weight += static_cast<double>(sequence.label_weights[i]);
                      labels += sequence.label_weights[i] > 0;
                    }
                  }
                }});
  for (const Grid grid : {Grid{1, 1}, {1, 3}, {2, 2}, {4, 1}, {1, 7}}) {
    const auto first = run_training(on(grid), kVocabulary, weighed, {.steps = 1}).front();
    EXPECT_NEAR(first.loss, weighted / weight, 2e-6 * first.loss);
    EXPECT_EQ(first.labels, labels);
  }
}

TEST(WeightedTraining, GivesTheSameLossesOnEveryGridInEveryCut) {
  const auto single = run_training(on({1, 1}), kVocabulary, weighed, {.steps = 6});
  for (const Grid grid : {Grid{1, 3}, {1, 5}, {2, 2}, {4, 1}})
    expect_equal_within(run_training(on(grid), kVocabulary, weighed, {.steps = 6}), single, 1e-5);
  expect_equal_within(run_training(on({1, 3}, 4), kVocabulary, weighed, {.steps = 6}), single,
                      1e-5);
  TrainConfig config = on({1, 2}, 2);
  config.training.interleave = 2;
  config.parallelism.shard = "optimizer";
  config.activation_checkpoint.mode = "full";
  expect_equal_within(run_training(config, kVocabulary, weighed, {.steps = 6}), single, 1e-5);
}

TEST(WeightedTraining, HoldsWhereAnswersShareAQuestion) {
  const auto under = [](Grid grid) {
    TrainConfig config = on(grid);
    config.data.mask = "shared_question";
    config.data.prefix = 5;
    config.data.block = 7;
    return run_training(config, kVocabulary, weighed, {.steps = 4});
  };
  expect_equal_within(under({1, 3}), under({1, 1}), 1e-5);
}

TEST(WeightedTraining, WeightsOfOneAreNoneAndWeightsOfZeroAreNoLabelsBitForBit) {
  const auto masked = [](std::int64_t number) {  // prompts without labels
    RawSequence sequence = weighed(number);
    for (std::size_t i = 0; i < sequence.labels.size(); ++i)
      if (sequence.label_weights[i] == 0) sequence.labels[i] = -1;
    sequence.label_weights.clear();
    return sequence;
  };
  const auto ones = [&](std::int64_t number) {  // the same by weights
    RawSequence sequence = weighed(number);
    for (float& weight : sequence.label_weights) weight = weight > 0 ? 1.0f : 0.0f;
    return sequence;
  };
  for (const Grid grid : {Grid{1, 1}, {2, 3}}) {
    expect_equal_within(run_training(on(grid), kVocabulary, ones, {.steps = 4}),
                        run_training(on(grid), kVocabulary, masked, {.steps = 4}), 0);
  }
}

TEST(WeightedTraining, ScalingAllWeightsChangesNothing) {
  for (const float scale : {1e-20f, 3.0f, 1e20f}) {
    const auto scaled = [scale](std::int64_t number) {
      RawSequence sequence = weighed(number);
      for (float& weight : sequence.label_weights) weight *= scale;
      return sequence;
    };
    expect_equal_within(run_training(on({1, 3}), kVocabulary, scaled, {.steps = 3}),
                        run_training(on({1, 3}), kVocabulary, weighed, {.steps = 3}), 1e-5);
  }
}

}  // namespace
}  // namespace longhaul::launch
