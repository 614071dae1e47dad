// The loss on held-out text: which tokens it counts, the same on every grid, and nothing that
// training notices.
#include "launch/validation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <numeric>

#include "runtime/error.h"
#include "tests/support/small_blocks.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

constexpr std::int64_t kVocabulary = 31;
constexpr std::int64_t kSeqLen = 32;
// Documents of a sequence each, one after another; the sixth sequence is of 20 tokens only.
const std::vector<std::int64_t> kLengths = {1, 7, 24, 32, 13, 19, 2, 30, 32, 11, 9};
constexpr std::int64_t kTokens = 5 * kSeqLen + 20;
constexpr std::int64_t kLabels = kTokens - 11;  // all but each document's last token

std::vector<std::int32_t> tokens() {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < kTokens; ++i)
    tokens.push_back(static_cast<std::int32_t>((i * i * 5 + i / 3) % kVocabulary));
  return tokens;
}

struct Grid {
  std::int64_t data = 1, context = 1;
  std::string layout = "zigzag", scheme = "ring";
  std::int64_t micro_batch_size = 1, interleave = 1, servers = 0;
};

/// 12 sequences a step divide over every grid below.
TrainConfig on(const Grid& grid, std::int64_t steps = -1) {
  TrainConfig config = test::small_training(kSeqLen);
  config.training.tokens_per_step = 12 * kSeqLen;
  config.training.micro_batch_size = grid.micro_batch_size;
  config.training.interleave = grid.interleave;
  config.parallelism.data_parallel_replicate_degree = grid.data;
  config.parallelism.context_parallel_degree = grid.context;
  config.parallelism.context_parallel_layout = grid.layout;
  config.parallelism.context_parallel_scheme = grid.scheme;
  if (grid.servers > 0) {
    config.attention_servers.mode = "dedicated";
    config.attention_servers.count = grid.servers;
  }
  config.validation.enable = true;
  config.validation.freq = 3;
  config.validation.steps = steps;
  return config;
}

class ValidationTest : public testing::Test {
 protected:
  ValidationTest() {
    test::write_small_blocks(path(), tokens(), kLengths, kSeqLen);
    training_.emplace(runtime::Corpus::open(path()));
  }
  std::filesystem::path path() const { return folder_ / "held_out.h5"; }

  std::shared_ptr<const ValidationData> data(const TrainConfig& config) const {
    const runtime::Sequences training(*training_, kSeqLen, 5);
    return std::make_shared<const ValidationData>(runtime::Corpus::open(path()), training, config);
  }
  static test::RawSequence training_sequence(std::int64_t number) {
    return test::random_sequence(kVocabulary, kSeqLen, number);
  }

  using Use = std::function<void(Validation&, Trainer&, runtime::Communicator&)>;
  std::vector<StepResult> train(const TrainConfig& config, std::int64_t steps,
                                const Use& use) const {
    const auto held_out = data(config);
    test::RunSteps options{.steps = steps};
    options.after = [&](Trainer& trainer, runtime::Communicator& world) {
      Validation validation(config, held_out, trainer);
      use(validation, trainer, world);
    };
    return test::run_training(config, kVocabulary, training_sequence, options);
  }

  /// After two steps; the same on every rank.
  ValidationMetrics validated(const TrainConfig& config) const {
    std::mutex mutex;
    std::vector<ValidationMetrics> results;
    train(config, 2, [&](Validation& validation, Trainer& trainer, runtime::Communicator&) {
      const auto metrics = validation.run([] { return false; });
      ASSERT_TRUE(metrics);
      EXPECT_EQ(trainer.attention().unprepared_calls(), 0);
      const std::lock_guard lock(mutex);
      results.push_back(*metrics);
    });
    for (const ValidationMetrics& result : results) {
      EXPECT_TRUE(result.loss == results[0].loss || std::isnan(result.loss)) << result.loss;
      EXPECT_EQ(result.labels, results[0].labels);
    }
    return results.at(0);
  }

  test::TempDirectory folder_;
  std::optional<const runtime::Corpus> training_;
};

/// Sequence `number` of the corpus, token by token, without labels where the corpus is over.
test::RawSequence held_out_sequence(std::int64_t number) {
  const std::vector<std::int32_t> all = tokens();
  std::vector<bool> first(kTokens + 1);
  std::int64_t begin = 0;
  for (const std::int64_t length : kLengths) {
    first[static_cast<std::size_t>(begin)] = true;
    begin += length;
  }
  first[kTokens] = true;
  test::RawSequence sequence;
  for (std::int64_t i = 0; i < kSeqLen; ++i) {
    const std::int64_t at = number * kSeqLen + i;
    const auto token = static_cast<std::size_t>(at % kTokens);
    if (i == 0 || first[token]) sequence.documents.push_back(i);
    sequence.tokens.push_back(all[token]);
    sequence.positions.push_back(static_cast<std::int32_t>(i - sequence.documents.back()));
    sequence.labels.push_back(at >= kTokens || first[token + 1] ? -1 : all[token + 1]);
  }
  sequence.documents.push_back(kSeqLen);
  return sequence;
}

TEST_F(ValidationTest, CountsEveryTokenOnceOnEveryGrid) {
  // The expectation: one sequence after another, row by row, on one rank.
  double loss = 0;
  std::int64_t labels = 0;
  train(on({}), 2, [&](Validation&, Trainer& trainer, runtime::Communicator&) {
    for (std::int64_t number = 0; number < 6; ++number) {
      const models::Evaluation rows =
          trainer.evaluate(test::RawSequences(held_out_sequence), std::vector{number}).tensors;
      for (std::int64_t row = 0; row < kSeqLen; ++row) {
        loss += static_cast<double>(rows.row_loss.as<float>()[row]);
        labels += rows.row_loss.as<float>()[row] > 0 ? 1 : 0;
      }
    }
  });
  ASSERT_EQ(labels, kLabels);
  loss /= static_cast<double>(labels);
  for (const Grid& grid :
       {Grid{}, Grid{1, 3}, Grid{2, 1}, Grid{3, 1, "striped"}, Grid{2, 2, "balanced", "burst", 2},
        Grid{1, 5, "contiguous", "group_cast", 2, 2}, Grid{1, 7, "document_zigzag"},
        Grid{4, 1, "zigzag", "ring", 3}, Grid{12, 1}, Grid{2, 2, "packed", "disaggregated", 2},
        Grid{3, 1, "packed", "disaggregated"},
        Grid{.data = 4, .layout = "packed", .scheme = "disaggregated", .servers = 2},
        Grid{1, 4, "zigzag", "ulysses", 4, 2}}) {
    SCOPED_TRACE(runtime::concat("data ", grid.data, " x context ", grid.context, ", ", grid.layout,
                                 ", micro batches of ", grid.micro_batch_size));
    const ValidationMetrics metrics = validated(on(grid));
    EXPECT_LE(std::abs(metrics.loss - loss), 1e-6 * loss);
    EXPECT_EQ(metrics.labels, kLabels);
    EXPECT_EQ(metrics.tokens, kTokens);
    EXPECT_EQ(metrics.step, 2);
    TrainConfig again = on(grid);
    again.parallelism.shard = "optimizer";
    EXPECT_EQ(metrics.loss, validated(again).loss) << "again, the optimizer's state sharded";
  }
}

TEST_F(ValidationTest, WeightsOfLabelsHold) {
  // Token t weighs t % 3 where it is predicted: 0 is no label.
  {
    runtime::CorpusWriter writer(path(), kVocabulary, "bytes");
    const std::vector<std::int32_t> all = tokens();
    std::int64_t begin = 0;
    for (const std::int64_t length : kLengths) {
      std::vector<float> weights;
      for (std::int64_t t = begin; t < begin + length; ++t)
        weights.push_back(static_cast<float>(t % 3));
      writer.append(std::span(all).subspan(static_cast<std::size_t>(begin), weights.size()),
                    weights);
      writer.end_document();
      begin += length;
    }
    writer.finish();
  }
  double loss = 0, weight = 0;
  std::int64_t labels = 0;
  train(on({}), 2, [&](Validation&, Trainer& trainer, runtime::Communicator&) {
    for (std::int64_t number = 0; number < 6; ++number) {
      const test::RawSequence sequence = held_out_sequence(number);
      const models::Evaluation rows =
          trainer.evaluate(test::RawSequences(held_out_sequence), std::vector{number}).tensors;
      for (std::size_t row = 0; row < sequence.labels.size(); ++row) {
        if (sequence.labels[row] < 0) continue;
        const auto of =
            static_cast<double>((number * kSeqLen + static_cast<std::int64_t>(row) + 1) % 3);
        loss += of * static_cast<double>(rows.row_loss.as<float>()[row]);
        weight += of;
        labels += of > 0 ? 1 : 0;
      }
    }
  });
  for (const Grid& grid : {Grid{}, Grid{1, 3}, Grid{2, 2, "balanced", "burst", 2}}) {
    const ValidationMetrics metrics = validated(on(grid));
    EXPECT_LE(std::abs(metrics.loss - loss / weight), 1e-6 * loss / weight) << grid.data;
    EXPECT_EQ(metrics.labels, labels);
  }
}

TEST_F(ValidationTest, StepsTakeTheCorpusFromItsBeginning) {
  TrainConfig config = on({1, 2}, 2);
  config.training.tokens_per_step = 2 * kSeqLen;
  const ValidationMetrics metrics = validated(config);
  EXPECT_EQ(metrics.tokens, 4 * kSeqLen);
  EXPECT_EQ(metrics.labels, 4 * kSeqLen - 8);
  EXPECT_EQ(data(config)->sequences(), 4);
  for (std::int64_t number = 0; number < 6; ++number)
    EXPECT_EQ(data(config)->documents(number).offsets, held_out_sequence(number).documents);
}

TEST_F(ValidationTest, SeveralStepsOfItAreOneLoss) {
  TrainConfig config = on({2, 1});
  config.training.tokens_per_step = 4 * kSeqLen;  // the second of two steps takes two sequences
  TrainConfig small = on({1, 1});
  small.training.tokens_per_step = 2 * kSeqLen;
  config.training.max_norm = small.training.max_norm = 0;
  config.optimizer.lr = small.optimizer.lr = 0;  // the same weights, whatever a step takes
  const ValidationMetrics four = validated(config), two = validated(small);
  EXPECT_LE(std::abs(four.loss - two.loss), 1e-6 * two.loss);
  EXPECT_EQ(four.labels, kLabels);
  EXPECT_EQ(two.labels, kLabels);
}

TEST_F(ValidationTest, TrainingGoesOnAsIfNothingHadHappened) {
  for (const std::string dtype : {"float32", "bfloat16"}) {
    SCOPED_TRACE(dtype);
    TrainConfig config = on({2, 2, "zigzag", "ring", 1, 2});
    config.training.dtype = runtime::dtype_from_name(dtype);
    config.parallelism.context_parallel_switch = "3:burst,5:all_gather";
    std::mutex mutex;
    const auto straight = train(config, 6, [](Validation&, Trainer&, runtime::Communicator&) {});
    const auto run = [&](Validation& validation, Trainer& trainer, runtime::Communicator& world) {
      for (std::size_t step = 0; step < 6; ++step) {
        validation.load_ahead(trainer.completed_steps() + 1);
        const StepResult result = trainer.step();
        if (world.rank() == 0) {
          const std::lock_guard lock(mutex);
          EXPECT_EQ(result.loss, straight[step].loss) << "step " << step + 1;
          EXPECT_EQ(result.grad_norm, straight[step].grad_norm) << "step " << step + 1;
        }
        EXPECT_EQ(validation.due(trainer.completed_steps()), step % 3 == 2);
        if (validation.due(trainer.completed_steps())) {
          EXPECT_TRUE(validation.run([] { return false; }));
        }
      }
      EXPECT_EQ(trainer.attention().unprepared_calls(), 0);
    };
    train(config, 0, run);
  }
}

TEST_F(ValidationTest, AfterAResumeItRunsUnderTheSchemeOfItsStepWithTheSameBits) {
  TrainConfig config = on({1, 4});
  config.parallelism.context_parallel_switch = "3:ulysses";
  const std::string checkpoints = (folder_ / "checkpoints").string();
  const auto held_out = data(config);
  std::mutex mutex;
  std::vector<double> losses;
  const auto validate = [&](Trainer& trainer, runtime::Communicator&) {
    EXPECT_EQ(trainer.completed_steps(), 3);
    Validation validation(config, held_out, trainer);
    const auto metrics = validation.run([] { return false; });
    EXPECT_EQ(trainer.attention().unprepared_calls(), 0);
    const std::lock_guard lock(mutex);
    losses.push_back(metrics.value().loss);
  };
  test::RunSteps options{.steps = 3, .save_to = checkpoints, .after = validate};
  test::run_training(config, kVocabulary, training_sequence, options);
  options = {.steps = 0, .load_from = checkpoints, .after = validate};
  test::run_training(config, kVocabulary, training_sequence, options);
  EXPECT_EQ(losses, std::vector<double>(8, losses.at(0)));
}

TEST_F(ValidationTest, StopsBetweenStepsWhenAnyRankIsToldTo) {
  TrainConfig config = on({1, 3});
  config.training.tokens_per_step = 2 * kSeqLen;  // three steps
  train(config, 1, [&](Validation& validation, Trainer&, runtime::Communicator& world) {
    int asked = 0;
    const auto on_rank_1 = [&] { return ++asked == 2 && world.rank() == 1; };
    EXPECT_FALSE(validation.run(on_rank_1));
    EXPECT_EQ(asked, 2);
    // Told during the last step, it is done all the same; and what was loaded ahead is in nobody's
    // way.
    asked = 0;
    EXPECT_TRUE(validation.run([&] { return ++asked == 3; }));
  });
}

TEST_F(ValidationTest, DamageIsAnErrorOfTheValidationThatReadsIt) {
  test::write_small_blocks(path(), tokens(), kLengths, kSeqLen, {3});
  TrainConfig config = on({1, 2}, 1);
  config.training.tokens_per_step = 2 * kSeqLen;
  EXPECT_EQ(validated(config).tokens, 2 * kSeqLen);  // does not read it
  config.validation.steps = -1;
  test::RunSteps options{.steps = 1};
  const auto held_out = data(config);
  options.after = [&](Trainer& trainer, runtime::Communicator&) {
    Validation validation(config, held_out, trainer);
    validation.run([] { return false; });
  };
  try {
    test::run_training(config, kVocabulary, training_sequence, options);
    ADD_FAILURE() << "no error";
  } catch (const runtime::Error& error) {
    EXPECT_EQ(error.code(), runtime::ExitCode::data) << error.what();
    EXPECT_NE(std::string(error.what()).find("held_out.h5"), std::string::npos) << error.what();
  }
}

TEST_F(ValidationTest, WithoutLabelsTheLossIsNoNumber) {
  test::write_small_blocks(path(), tokens(), std::vector<std::int64_t>(kTokens, 1), kSeqLen);
  const ValidationMetrics metrics = validated(on({1, 2}));
  EXPECT_TRUE(std::isnan(metrics.loss));
  EXPECT_EQ(metrics.labels, 0);
}

}  // namespace
}  // namespace longhaul::launch
