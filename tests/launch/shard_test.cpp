// With its optimizer's state sharded a run is the same run, bit for bit, on every grid and through
// checkpoints, in less memory.
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "launch/trainer.h"
#include "parallel/sharding.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using test::run_training;
using test::RunSteps;

constexpr std::int64_t kVocabulary = 31;
constexpr std::int64_t kSeqLen = 53;

test::RawSequence documents(std::int64_t cursor) {
  return test::random_sequence(kVocabulary, kSeqLen, cursor);
}

struct Grid {
  std::int64_t data, context;
};

/// Odd sizes, so that tensors, groups and chunks begin anywhere: eight chunks of the norm in all.
/// Every step is clipped.
TrainConfig on(Grid grid, const std::string& shard) {
  TrainConfig config = test::small_training(kSeqLen);
  config.model.hidden_size = 61;
  config.model.intermediate_size = 257;
  config.model.head_dim = 16;
  config.training.tokens_per_step = 12 * kSeqLen;
  config.training.max_norm = 0.01;
  config.parallelism.data_parallel_replicate_degree = grid.data;
  config.parallelism.context_parallel_degree = grid.context;
  config.parallelism.shard = shard;
  return config;
}

/// A model of one chunk: all ranks but one own nothing.
TrainConfig tiny_on(Grid grid, const std::string& shard) {
  TrainConfig config = on(grid, shard);
  config.model = test::small_training(kSeqLen).model;
  return config;
}

using Contents = std::map<std::string, std::vector<float>>;

/// Every tensor of the newest checkpoint.
Contents contents_of(const std::string& folder) {
  const runtime::Stream stream = runtime::Stream::cpu("host");
  const auto checkpoint =
      runtime::Checkpoint::open(folder, runtime::list_checkpoints(folder).back());
  Contents contents;
  for (const runtime::TensorInfo& info : checkpoint.tensors()) {
    const runtime::Tensor tensor(info.sizes, info.dtype, stream);
    checkpoint.read(info.name, std::vector<std::int64_t>(info.sizes.size(), 0), tensor);
    contents[info.name].assign(tensor.as<float>(), tensor.as<float>() + tensor.elements());
  }
  return contents;
}

void expect_same_bits(const std::vector<StepResult>& actual,
                      const std::vector<StepResult>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t step = 0; step < actual.size(); ++step) {
    EXPECT_EQ(actual[step].loss, expected[step].loss) << "step " << step;
    EXPECT_EQ(actual[step].grad_norm, expected[step].grad_norm) << "step " << step;
  }
}

void expect_same_run(TrainConfig config) {
  const test::TempDirectory folder;
  const std::string whole = (folder / "whole").string(), parts = (folder / "parts").string();
  config.parallelism.shard = "none";
  const auto expected =
      run_training(config, kVocabulary, documents, {.steps = 5, .save_to = whole});
  config.parallelism.shard = "optimizer";
  const auto actual = run_training(config, kVocabulary, documents, {.steps = 5, .save_to = parts});
  expect_same_bits(actual, expected);
  for (const StepResult& step : expected) EXPECT_GT(step.grad_norm, config.training.max_norm);
  EXPECT_EQ(contents_of(parts), contents_of(whole));
}

TEST(ShardedOptimizer, GivesTheSameBitsOnEveryGrid) {
  for (const Grid grid : {Grid{1, 1}, {1, 4}, {2, 2}, {4, 1}, {3, 1}, {1, 5}, {3, 4}}) {
    SCOPED_TRACE(runtime::concat("data ", grid.data, " x context ", grid.context));
    expect_same_run(on(grid, ""));
    expect_same_run(tiny_on(grid, ""));
  }
}

TEST(ShardedOptimizer, GivesTheSameBitsInOnePassAndInBfloat16) {
  TrainConfig config = on({2, 2}, "");
  config.training.micro_batch_size = 6;  // no accumulation, where the others have passes
  expect_same_run(config);
  config = on({1, 3}, "");
  config.training.dtype = runtime::DType::bfloat16;
  expect_same_run(config);
  config.model.tie_word_embeddings = true;
  config.training.max_norm = 0;
  expect_same_run(config);
}

TEST(ShardedOptimizer, ResumesWhatWasSavedOnAnyGridShardedOrNot) {
  const test::TempDirectory folder;
  for (const Grid saved : {Grid{2, 2}, {1, 3}}) {
    for (const char* shard : {"none", "optimizer"}) {
      run_training(on(saved, shard), kVocabulary, documents,
                   {.steps = 3, .save_to = (folder / shard).string()});
    }
    for (const Grid grid : {Grid{2, 2}, {1, 1}, {4, 1}, {1, 5}}) {
      const auto resume = [&](const char* from, const char* shard) {
        return run_training(on(grid, shard), kVocabulary, documents,
                            {.steps = 3, .load_from = (folder / from).string()});
      };
      SCOPED_TRACE(runtime::concat("data ", saved.data, " x context ", saved.context, " to data ",
                                   grid.data, " x context ", grid.context));
      const auto expected = resume("none", "none");
      expect_same_bits(resume("optimizer", "none"), expected);
      expect_same_bits(resume("none", "optimizer"), expected);
      expect_same_bits(resume("optimizer", "optimizer"), expected);
    }
  }
}

TEST(ShardedOptimizer, AResumedRunIsTheStraightOne) {
  const test::TempDirectory folder;
  const std::string checkpoints = (folder / "checkpoints").string();
  const auto straight = run_training(on({2, 2}, "none"), kVocabulary, documents, {.steps = 6});
  run_training(on({2, 2}, "optimizer"), kVocabulary, documents,
               {.steps = 3, .save_to = checkpoints});
  const auto rest = run_training(on({2, 2}, "optimizer"), kVocabulary, documents,
                                 {.steps = 3, .load_from = checkpoints});
  expect_same_bits(rest, {straight.begin() + 3, straight.end()});
}

TEST(ShardedOptimizer, MemoryFallsByWhatOthersHold) {
  for (const std::int64_t ranks : {1, 2, 4, 8}) {
    std::int64_t elements = 0;
    const auto peak = [&](const char* shard) {
      std::mutex mutex;
      std::int64_t most = 0;
      run_training(on({1, ranks}, shard), kVocabulary, documents,
                   {.steps = 2, .after = [&](Trainer& trainer, runtime::Communicator&) {
                      const std::lock_guard lock(mutex);
                      elements = trainer.parameters();
                      most = std::max(most, trainer.peak_tensor_bytes());
                    }});
      return most;
    };
    const std::int64_t saved = peak("none") - peak("optimizer");
    // Two moments of four bytes. The rank that holds most has its even share of eight chunks.
    EXPECT_EQ(saved, 8 * (elements - std::min(elements, 8 / ranks * 16384))) << ranks << " ranks";
  }
}

}  // namespace
}  // namespace longhaul::launch
