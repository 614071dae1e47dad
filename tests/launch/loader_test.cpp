// Batches are made one step ahead, on another thread; errors belong to the step that needs them.
#include "launch/loader.h"

#include <gtest/gtest.h>

#include <mutex>
#include <semaphore>
#include <thread>

#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kSeqLen = 31;

test::RawSequence documents(std::int64_t number) {
  return test::random_sequence(50, kSeqLen, number);
}

/// Of data rank 1 of 2, which attend apart: 4 sequences a step in passes of 1, so this rank takes 1
/// and 3 of the first.
LoaderInputs inputs(const test::RawSequences::Generator& generator) {
  LoaderInputs inputs;
  inputs.sequences = std::make_shared<const test::RawSequences>(generator);
  inputs.config = test::small_training(kSeqLen);
  inputs.config.parallelism.data_parallel_replicate_degree = 2;
  inputs.axis.groups = 2;
  inputs.group = 1;
  inputs.shape.data.mask = "documents";
  inputs.shape.kinds = {{std::nullopt, 1}};
  return inputs;
}

void expect_sequences(const std::vector<LocalBatch>& batches,
                      const std::vector<std::int64_t>& numbers) {
  ASSERT_EQ(batches.size(), numbers.size());
  for (std::size_t pass = 0; pass < numbers.size(); ++pass)
    EXPECT_EQ(batches[pass].rows.tokens, documents(numbers[pass]).tokens);
}

TEST(Loader, MakesTheNextStepWhileThisOneRuns) {
  std::binary_semaphore this_step_runs(0);
  std::mutex mutex;
  std::vector<std::thread::id> threads;
  LoaderInputs slow = inputs(documents);
  slow.prepare = [&](const LocalBatch& batch, std::int64_t step) {
    EXPECT_EQ(batch.layout.ranks(), 1);
    const std::lock_guard lock(mutex);
    threads.push_back(std::this_thread::get_id());
    if (step == 2 && threads.size() == 3) {
      EXPECT_TRUE(this_step_runs.try_acquire_for(60s)) << "start() waited for the preparer";
    }
  };
  Loader loader(std::move(slow));
  expect_sequences(loader.take({1, 0}), {1, 3});
  loader.start({2, 4});
  this_step_runs.release();
  expect_sequences(loader.take({2, 4}), {5, 7});
  ASSERT_EQ(threads.size(), 4u);  // every batch was prepared, once
  for (const std::thread::id thread : threads) EXPECT_NE(thread, std::this_thread::get_id());
}

TEST(Loader, PreparingAddsNoTimeToStepsThatAreLonger) {
  constexpr auto kPreparing = 100ms, kStep = 300ms;
  LoaderInputs slow = inputs(documents);
  slow.prepare = [&](const LocalBatch&, std::int64_t) {
    std::this_thread::sleep_for(kPreparing / 2);  // two batches
  };
  Loader loader(std::move(slow));
  runtime::Clock::duration waited{};
  for (std::int64_t step = 1; step <= 10; ++step) {
    const auto begin = runtime::Clock::now();
    loader.take({step, step * 4});
    waited += runtime::Clock::now() - begin;
    loader.start({step + 1, (step + 1) * 4});
    std::this_thread::sleep_for(kStep);
  }
  EXPECT_GE(waited, kPreparing);  // nothing runs beside the first
  EXPECT_LE(waited, 500ms);
}

TEST(Loader, AnErrorSurfacesInTheStepThatNeedsTheBatch) {
  Loader loader(inputs([](std::int64_t number) {
    if (number == 7) runtime::fail(runtime::ExitCode::data, "sequence 7 is damaged");
    return documents(number);
  }));
  expect_sequences(loader.take({1, 0}), {1, 3});
  loader.start({2, 4});
  std::this_thread::sleep_for(20ms);
  test::expect_error(runtime::ExitCode::data, "sequence 7 is damaged", [&] {
    loader.take({2, 4});
  });
  test::expect_error(runtime::ExitCode::data, "sequence 7 is damaged", [&] {
    loader.take({2, 4});
  });
  loader.start({2, 4});  // nobody takes it
  expect_sequences(loader.take({3, 8}), {9, 11});
}

TEST(Loader, MakesAnotherStepThanTheOneBegunWhenAsked) {
  std::mutex mutex;
  std::vector<std::int64_t> steps;
  LoaderInputs watched = inputs(documents);
  watched.prepare = [&](const LocalBatch&, std::int64_t step) {
    const std::lock_guard lock(mutex);
    steps.push_back(step);
  };
  {
    Loader loader(std::move(watched));
    loader.start({2, 4});
    expect_sequences(loader.take({12, 44}), {45, 47});  // a checkpoint was loaded
    loader.start({13, 48});
    expect_sequences(loader.take({13, 52}), {53, 55});  // of another tokens_per_step
    loader.start({14, 52});
  }  // an unfinished step is waited for
  EXPECT_EQ(steps, (std::vector<std::int64_t>{2, 2, 12, 12, 13, 13, 13, 13, 14, 14}));
}

}  // namespace
}  // namespace longhaul::launch
