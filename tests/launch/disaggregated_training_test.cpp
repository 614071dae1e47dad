// Training with attention servers: the same losses over data x context as on one rank, however the
// servers are placed, and the same bits whatever goes together or is computed again.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <mutex>
#include <thread>

#include "launch/batches.h"
#include "launch/memory.h"
#include "launch/model.h"
#include "launch/trainer.h"
#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using test::random_sequence;
using test::RawSequence;
using test::RawSequences;
using test::run_training;

constexpr std::int64_t kVocabulary = 31;
constexpr std::int64_t kLong = 4096;
constexpr std::int64_t kSeqLen = 97;  // a prime: ragged over every number of ranks
constexpr const char* kScheme = "disaggregated";

RawSequence documents(std::int64_t number) { return random_sequence(kVocabulary, kSeqLen, number); }

struct Grid {
  std::int64_t data = 1, context = 1, servers = 0;
  std::string text() const {
    return runtime::concat("data ", data, " x context ", context, " + ", servers);
  }
};

TrainConfig on(const Grid& grid, const std::string& layout = "packed") {
  TrainConfig config = test::small_training(kSeqLen);
  config.training.steps = 50;
  config.parallelism.data_parallel_replicate_degree = grid.data;
  config.parallelism.context_parallel_degree = grid.context;
  config.parallelism.context_parallel_layout = layout;
  config.parallelism.context_parallel_scheme = kScheme;
  if (grid.servers > 0) {
    config.attention_servers.mode = "dedicated";
    config.attention_servers.count = grid.servers;
  }
  return config;
}

TrainConfig by_ring(std::int64_t data, std::int64_t context) {
  TrainConfig config = on({data, context}, "zigzag");
  config.parallelism.context_parallel_scheme = "ring";
  return config;
}

/// Relative differences; 0 asks for the same bits. NaN equals NaN.
void expect_equal_within(const std::vector<StepResult>& a, const std::vector<StepResult>& b,
                         double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  const auto equal = [&](double x, double y, double within) {
    return (std::isnan(x) && std::isnan(y)) || std::abs(x - y) <= within * std::abs(y);
  };
  for (std::size_t step = 0; step < a.size(); ++step) {
    EXPECT_TRUE(equal(a[step].loss, b[step].loss, tolerance))
        << a[step].loss << " and " << b[step].loss << ", loss of step " << step;
    EXPECT_TRUE(equal(a[step].grad_norm, b[step].grad_norm, 10 * tolerance))
        << a[step].grad_norm << " and " << b[step].grad_norm << ", norm of step " << step;
    EXPECT_EQ(a[step].labels, b[step].labels);
    EXPECT_EQ(a[step].areas, b[step].areas);
  }
}

/// What holds after any step: calls were prepared, and nothing of them is kept.
void expect_ended(Trainer& trainer, runtime::Communicator&) {
  EXPECT_EQ(trainer.attention().unprepared_calls(), 0);
  if (!trainer.serves()) return;
  EXPECT_EQ(trainer.compute().memory().current_bytes, 0) << "a server keeps nothing between steps";
}

TEST(Disaggregated, FiftyStepsGiveTheLossesOfOneRank) {
  const auto single = run_training(by_ring(1, 1), kVocabulary, documents, {.steps = 50});
  EXPECT_LT(single.back().loss, 0.97 * single.front().loss) << "it learns";
  for (const Grid& grid : {Grid{1, 1}, Grid{1, 2}, Grid{1, 4}, Grid{2, 2}, Grid{4, 1},
                           Grid{1, 2, 1}, Grid{2, 2, 2}, Grid{1, 3, 2}}) {
    SCOPED_TRACE(grid.text());
    TrainConfig config = on(grid);
    if (grid.context == 4) config.parallelism.shard = "optimizer";
    expect_equal_within(
        run_training(config, kVocabulary, documents, {.steps = 50, .after = expect_ended}), single,
        1e-4);
  }
}

TEST(Disaggregated, RepeatsBitForBitInterleavedAndRecomputed) {
  for (const Grid& grid : {Grid{1, 3}, Grid{2, 2}, Grid{1, 2, 1}, Grid{2, 1, 3}}) {
    for (const char* layout : {"packed", "zigzag"}) {
      SCOPED_TRACE(grid.text() + " over " + layout);
      TrainConfig config = on(grid, layout);
      if (grid.servers == 1)  // what servers keep is there when its backward comes
        config.parallelism.context_parallel_scheme = "disaggregated(resend=false)";
      if (grid.data == 1) config.training.tokens_per_step = 3 * kSeqLen;  // the last goes alone
      const auto apart = run_training(config, kVocabulary, documents, {.steps = 4});
      for (const char* mode : {"none", "selective", "full"}) {
        for (const std::int64_t interleave : {1, 2}) {
          SCOPED_TRACE(runtime::concat(mode, ", interleave ", interleave));
          config.activation_checkpoint.mode = mode;
          config.training.interleave = interleave;
          expect_equal_within(
              run_training(config, kVocabulary, documents, {.steps = 4, .after = expect_ended}),
              apart, 0);
        }
      }
    }
  }
}

/// Messages that are late, and overtake each other, change no bit.
TEST(Disaggregated, LateMessagesChangeNothing) {
  TrainConfig config = on({2, 2, 1});
  config.training.interleave = 2;
  const auto prompt = run_training(config, kVocabulary, documents, {.steps = 3});
  const runtime::LoopbackOptions late{.latency_seconds = 2e-4, .jitter_seconds = 1e-3};
  expect_equal_within(run_training(config, kVocabulary, documents, {.steps = 3, .loopback = late}),
                      prompt, 0);
}

TEST(Disaggregated, ResumesWithOtherServersAndSchemes) {
  const test::TempDirectory folder;
  const Grid saved{2, 2, 1};
  const auto straight = run_training(on(saved), kVocabulary, documents, {.steps = 8});
  run_training(on(saved), kVocabulary, documents, {.steps = 4, .save_to = folder.path().string()});
  const std::vector<StepResult> rest(straight.begin() + 4, straight.end());
  const auto resumed = [&](const TrainConfig& config) {
    return run_training(config, kVocabulary, documents,
                        {.steps = 4, .load_from = folder.path().string()});
  };
  expect_equal_within(resumed(on(saved)), rest, 0);
  for (const Grid& grid : {Grid{1, 1}, Grid{1, 3, 2}, Grid{4, 1}}) {
    SCOPED_TRACE(grid.text());
    expect_equal_within(resumed(on(grid)), rest, 1e-5);
  }
  expect_equal_within(resumed(by_ring(2, 2)), rest, 1e-5);
}

/// A save may take longer than ranks wait for each other, and servers take no part in it.
TEST(Disaggregated, ServersWaitForSlowDisks) {
  const test::TempDirectory folder;
  const test::RunSteps steps{.steps = 1,
                             .after =
                                 [&](Trainer& trainer, auto&) {
                                   trainer.save(folder.path(), 0, [] {
                                     std::this_thread::sleep_for(std::chrono::milliseconds(700));
                                   });
                                   trainer.step();
                                 },
                             .loopback = {.timeout_seconds = 1}};
  run_training(on({1, 2, 1}), kVocabulary, documents, steps);
  EXPECT_EQ(runtime::list_checkpoints(folder.path()), std::vector<std::int64_t>{1});
}

/// Ranks without tokens, steps without labels, documents of one token.
TEST(Disaggregated, RanksWithoutTokensTakePart) {
  constexpr std::int64_t kShort = 3;
  const auto sequence = [](std::int64_t number) {
    RawSequence raw = random_sequence(kVocabulary, kShort, number);
    if (number / 4 == 1) std::ranges::fill(raw.labels, -1);
    return raw;
  };
  const auto of = [&](TrainConfig config) {
    config.training.seq_len = kShort;
    config.training.tokens_per_step = 4 * kShort;
    return config;
  };
  const auto single = run_training(of(by_ring(1, 1)), kVocabulary, sequence, {.steps = 4});
  for (const Grid& grid : {Grid{1, 5}, Grid{2, 4}, Grid{1, 7, 2}, Grid{4, 2, 1}}) {
    SCOPED_TRACE(grid.text());
    expect_equal_within(
        run_training(of(on(grid)), kVocabulary, sequence, {.steps = 4, .after = expect_ended}),
        single, 1e-5);
  }
}

/// Documents of many shards, so that tasks are cut, and servers that differ in speed.
TEST(Disaggregated, LongDocumentsAndMeasuredSpeedsChangeNoLoss) {
  constexpr std::int64_t kTokens = 900;
  const auto sequence = [](std::int64_t number) {
    RawSequence raw = random_sequence(kVocabulary, kTokens, number);
    raw.documents = {0, 701 + number % 5, kTokens};
    for (std::size_t i = 0; i < raw.positions.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i);
      const std::int64_t begin = row < raw.documents[1] ? 0 : raw.documents[1];
      raw.positions[i] = static_cast<std::int32_t>(row - begin);
      if (row + 1 == raw.documents[1] || row + 1 == kTokens) raw.labels[i] = -1;
    }
    return raw;
  };
  const auto of = [&](TrainConfig config) {
    config.training.seq_len = kTokens;
    config.training.tokens_per_step = 4 * kTokens;
    return config;
  };
  const auto single = run_training(of(by_ring(1, 1)), kVocabulary, sequence, {.steps = 5});
  for (const Grid& grid : {Grid{1, 3}, Grid{2, 2}, Grid{1, 2, 1}, Grid{2, 1, 3}}) {
    SCOPED_TRACE(grid.text());
    TrainConfig config = of(on(grid));
    expect_equal_within(
        run_training(config, kVocabulary, sequence, {.steps = 5, .after = expect_ended}), single,
        1e-5);
    config.attention_servers.measure_speeds = true;
    expect_equal_within(
        run_training(config, kVocabulary, sequence, {.steps = 5, .after = expect_ended}), single,
        1e-5);
  }
}

TEST(Disaggregated, ASchemeOfTheContextAxisMayFollowWhereTheAxisIsTheSame) {
  TrainConfig config = on({1, 3}, "zigzag");
  const auto alone = run_training(config, kVocabulary, documents, {.steps = 6});
  config.parallelism.context_parallel_switch = "3:ring,5:disaggregated(tolerance=0.5)";
  expect_equal_within(run_training(config, kVocabulary, documents, {.steps = 6}), alone, 1e-5);
}

/// A rank that sees other documents deals other tasks, and all ranks say so before any is sent.
TEST(Disaggregated, RanksThatDealTasksOtherwiseDisagree) {
  const TrainConfig config = on({1, 3});
  const auto source = std::make_shared<const RawSequences>(documents);
  const auto other = std::make_shared<const RawSequences>(
      [](std::int64_t number) { return documents(number >= 4 ? number + 1 : number); });
  std::mutex mutex;
  std::vector<std::string> told;
  const auto rank = [&](std::unique_ptr<runtime::Communicator> world) {
    TrainerInputs inputs;
    inputs.config = config;
    inputs.vocab_size = kVocabulary;
    inputs.sequences = world->rank() == 1 ? other : source;
    Trainer trainer(std::move(inputs), *world);
    trainer.initialise();
    trainer.step();
    try {
      trainer.step();
    } catch (const runtime::Error& error) {
      const std::lock_guard lock(mutex);
      if (error.code() == runtime::ExitCode::disagree) told.push_back(error.what());
      throw;
    }
  };
  test::expect_error(runtime::ExitCode::disagree, "plan of the attention tasks of step 2",
                     [&] { runtime::run_loopback(3, {}, rank); });
  ASSERT_EQ(told.size(), 3u) << "every rank";
  for (const std::string& text : told) {
    EXPECT_NE(text.find("ranks 0, 2"), std::string::npos) << text;
    EXPECT_NE(text.find("rank 1"), std::string::npos) << text;
  }
}

/// What linear layers hold is the same on every rank, whatever the documents: tokens are dealt
/// evenly. Attention's own arenas are not in it.
TEST(Disaggregated, LinearActivationsAreEqualOverRanks) {
  const RawSequences sequences([](std::int64_t number) {  // one long document, then short ones
    RawSequence raw = random_sequence(kVocabulary, kLong, number);
    raw.documents = {0, kLong / 2 + 91};
    while (raw.documents.back() < kLong)
      raw.documents.push_back(
          std::min<std::int64_t>(kLong, raw.documents.back() + 1 + number % 37));
    return raw;
  });
  for (const Grid& grid : {Grid{1, 7}, Grid{2, 4}, Grid{4, 2, 3}}) {
    SCOPED_TRACE(grid.text());
    TrainConfig config = on(grid);
    config.training.seq_len = kLong;
    config.training.tokens_per_step = 4 * kLong;
    const MemoryQuestion question{config, kVocabulary, sequences};
    std::int64_t least = std::numeric_limits<std::int64_t>::max(), most = 0;
    for (int rank = 0; rank < grid.data * grid.context; ++rank) {
      const std::int64_t bytes = estimate_memory(question, rank).activations;
      least = std::min(least, bytes);
      most = std::max(most, bytes);
    }
    EXPECT_GT(least, 0);
    EXPECT_LE(static_cast<double>(most), 1.01 * static_cast<double>(least));
    for (int server = 0; server < grid.servers; ++server) {
      const auto rank = static_cast<int>(grid.data * grid.context) + server;
      const MemoryEstimate estimate = estimate_memory(question, rank);
      EXPECT_EQ(estimate.states() + estimate.activations, 0);
      EXPECT_GT(estimate.attention, 0);
    }
  }
}

}  // namespace
}  // namespace longhaul::launch
