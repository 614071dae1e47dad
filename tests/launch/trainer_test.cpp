// Training gives the same losses however it is spread, goes on bit for bit from a checkpoint, and
// learns what only attention across ranks can tell.
#include "launch/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "attention/named_masks.h"
#include "runtime/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/mask_words.h"
#include "tests/support/small_blocks.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using test::random_sequence;
using test::RawSequence;
using test::RawSequences;
using test::run_training;
using test::RunSteps;
using test::small_training;

constexpr std::int64_t kVocabulary = 31;
constexpr std::int64_t kSeqLen = 97;  // a prime: ragged over every number of ranks

RawSequence documents(std::int64_t cursor) { return random_sequence(kVocabulary, kSeqLen, cursor); }

/// Labels only in the first ninth of every sequence, and none at all in every third sequence.
RawSequence skewed(std::int64_t cursor) {
  RawSequence sequence = documents(cursor);
  for (std::size_t i = 0; i < sequence.labels.size(); ++i) {
    if (i >= sequence.labels.size() / 9 || cursor % 3 == 0) sequence.labels[i] = -1;
  }
  return sequence;
}

/// Relative differences of losses and gradient norms; tolerance 0 asks for the same bits. NaN
/// equals nothing.
void expect_equal_within(const std::vector<StepResult>& a, const std::vector<StepResult>& b,
                         double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t step = 0; step < a.size(); ++step) {
    EXPECT_LE(std::abs(a[step].loss - b[step].loss), tolerance * std::abs(b[step].loss))
        << "loss of step " << step;
    EXPECT_LE(std::abs(a[step].grad_norm - b[step].grad_norm),
              tolerance * std::abs(b[step].grad_norm))
        << "gradient norm of step " << step;
    EXPECT_EQ(a[step].labels, b[step].labels);
    EXPECT_EQ(a[step].area, b[step].area);
  }
}

struct Grid {
  std::int64_t data, context;
};

TrainConfig on(Grid grid, const std::string& layout = "zigzag", std::int64_t micro_batch_size = 1) {
  TrainConfig config = small_training(kSeqLen);
  config.parallelism.data_parallel_replicate_degree = grid.data;
  config.parallelism.context_parallel_degree = grid.context;
  config.parallelism.context_parallel_layout = layout;
  config.training.micro_batch_size = micro_batch_size;
  return config;
}

class SameLosses : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Trainer, SameLosses, ::testing::Values("documents", "skewed"),
                         [](const auto& which) { return std::string(which.param); });

TEST_P(SameLosses, OverContextRanksLayoutsAndGrids) {
  const RawSequences::Generator source = std::string(GetParam()) == "skewed" ? skewed : documents;
  const auto single = run_training(on({1, 1}), kVocabulary, source);
  EXPECT_LT(single.back().loss, single.front().loss);
  for (const std::int64_t context : {2, 3, 4, 8}) {
    SCOPED_TRACE("context " + std::to_string(context));
    expect_equal_within(run_training(on({1, context}), kVocabulary, source), single, 1e-5);
  }
  for (const char* layout : {"contiguous", "striped", "document_zigzag", "balanced"}) {
    SCOPED_TRACE(layout);
    expect_equal_within(run_training(on({1, 4}, layout), kVocabulary, source), single, 1e-5);
  }
  // Rows per rank change from batch to batch.
  for (const char* layout : {"document_zigzag", "balanced"}) {
    SCOPED_TRACE(std::string("micro batches of 2, data 2 x context 3, ") + layout);
    const auto spread = run_training(on({2, 3}, layout, 2), kVocabulary, source);
    expect_equal_within(spread, single, 1e-5);
  }
  // The batch is four sequences: what data ranks do not take at once is accumulated.
  for (const Grid grid : {Grid{2, 2}, Grid{4, 1}, Grid{2, 1}}) {
    SCOPED_TRACE("data " + std::to_string(grid.data) + " x context " +
                 std::to_string(grid.context));
    expect_equal_within(run_training(on(grid), kVocabulary, source), single, 1e-5);
  }
  for (const Grid grid : {Grid{1, 1}, Grid{1, 3}, Grid{2, 2}}) {
    SCOPED_TRACE("micro batches of 2, data " + std::to_string(grid.data) + " x context " +
                 std::to_string(grid.context));
    expect_equal_within(run_training(on(grid, "zigzag", 2), kVocabulary, source), single, 1e-5);
  }
}

TEST(Trainer, EverySchemeGivesTheSameLosses) {
  const auto single = run_training(on({1, 1}), kVocabulary, documents);
  std::vector<std::string> schemes = parallel::scheme_names();
  schemes.insert(schemes.end(), {"auto", "double_ring(outer=4, inner=1, backward=burst)",
                                 "usp(heads=2, nesting=ring_inside, around=double_ring)"});
  for (const std::string& scheme : schemes) {
    SCOPED_TRACE(scheme);
    TrainConfig config = on({1, 4}, scheme == "balanced_ring" ? "contiguous" : "zigzag");
    config.parallelism.context_parallel_scheme = scheme;
    expect_equal_within(run_training(config, kVocabulary, documents), single, 1e-5);
  }
}

TEST(Trainer, ChangesOfSchemeBetweenStepsLeaveTheLossesAlone) {
  TrainConfig config = on({2, 4}, "contiguous");
  const auto one_scheme = run_training(config, kVocabulary, documents);
  config.parallelism.context_parallel_switch =
      "3:burst,5:double_ring(outer=2,inner=2),8:balanced_ring,10:all_gather,12:ulysses,"
      "14:usp(heads=2,around=burst),16:group_cast,18:auto";
  const auto every_call_was_prepared = [](Trainer& trainer, runtime::Communicator&) {
    EXPECT_EQ(trainer.attention().unprepared_calls(), 0);
  };
  expect_equal_within(
      run_training(config, kVocabulary, documents, {.after = every_call_was_prepared}), one_scheme,
      1e-5);
}

TEST(Trainer, CausalMaskOverTheWholeSequence) {
  TrainConfig one = on({1, 1}), four = on({1, 4});
  one.data.mask = four.data.mask = "causal";
  expect_equal_within(run_training(four, kVocabulary, documents),
                      run_training(one, kVocabulary, documents), 1e-5);
}

/// Every mask of [data], with numbers where it takes them.
std::vector<DataConfig> all_masks() {
  std::vector<DataConfig> all;
  for (const attention::MaskRule& rule : attention::mask_rules()) {
    if (!rule.trainable()) continue;
    DataConfig data;
    data.mask = rule.name;
    if (rule.takes(attention::MaskInput::window)) data.window = 11;
    if (rule.takes(attention::MaskInput::prefix)) data.prefix = 9;
    if (rule.takes(attention::MaskInput::global)) data.global = 5;
    if (rule.takes(attention::MaskInput::block)) data.block = 6;
    all.push_back(data);
    if (data.mask == "causal_blockwise") {  // its blocks may also be the documents
      all.push_back(data);
      all.back().block.reset();
    }
  }
  return all;
}

TEST(Trainer, EveryMaskOverRanksAndBatches) {
  for (const DataConfig& data : all_masks()) {
    SCOPED_TRACE(mask_text(data));
    TrainConfig one = on({1, 1}), three = on({1, 3}, "zigzag", 2), four = on({2, 2}, "striped", 2);
    one.data = three.data = four.data = data;
    const auto single = run_training(one, kVocabulary, documents, {.steps = 3});
    expect_equal_within(run_training(three, kVocabulary, documents, {.steps = 3}), single, 1e-5);
    expect_equal_within(run_training(four, kVocabulary, documents, {.steps = 3}), single, 1e-5);
    std::int64_t area = 0;  // of the four sequences of the first step
    for (std::int64_t cursor = 0; cursor < 4; ++cursor) {
      attention::MaskParameters p;
      p.numbers = {data.window, data.prefix, data.global, data.block};
      p.documents = documents(cursor).documents;
      area += test::MaskWords(data.mask, p, kSeqLen).mask().area();
    }
    EXPECT_EQ(single[0].areas, std::vector{area});
    EXPECT_EQ(single[0].area, 2 * area) << "of both layers";
  }
}

TEST(Trainer, SlidingLayersGiveTheSameLossesForEverySchemeAndLayout) {
  constexpr std::int64_t kWindow = 7;
  const auto sliding = [&](TrainConfig config) {
    config.model.layer_types = {"sliding_attention", "full_attention"};
    config.model.sliding_window = kWindow;
    return config;
  };
  const auto single = run_training(sliding(on({1, 1})), kVocabulary, documents, {.steps = 2});
  std::vector<std::int64_t> areas(2);  // of the four sequences of the first step
  for (std::int64_t cursor = 0; cursor < 4; ++cursor) {
    for (const std::int64_t position : documents(cursor).positions) {
      areas[0] += std::min(position + 1, kWindow);
      areas[1] += position + 1;
    }
  }
  EXPECT_EQ(single[0].areas, areas);
  EXPECT_EQ(single[0].area, areas[0] + areas[1]);
  int runs = 0;
  for (const std::int64_t ranks : {3, 4}) {
    for (const std::string& scheme : parallel::scheme_names()) {
      for (const parallel::LayoutKind layout : parallel::layout_kinds()) {
        if (parallel::refuse({scheme, static_cast<int>(ranks), 4, 2, layout, true,
                              parallel::Family::softmax, /*whole_past=*/false}))
          continue;
        SCOPED_TRACE(runtime::concat(scheme, " over ", name(layout), ", ", ranks, " ranks"));
        TrainConfig config = sliding(on({1, ranks}, name(layout)));
        config.parallelism.context_parallel_scheme = scheme;
        expect_equal_within(run_training(config, kVocabulary, documents, {.steps = 2}), single,
                            1e-5);
        ++runs;
      }
    }
  }
  EXPECT_GT(runs, 70) << "schemes and layouts that suit";
}

TEST(Trainer, InterleavedPassesAreBitForBitOneAfterTheOther) {
  int runs = 0;
  for (const std::string& scheme : parallel::scheme_names()) {
    for (const parallel::LayoutKind layout : parallel::layout_kinds()) {
      if (parallel::refuse({scheme, 4, 4, 2, layout, true})) continue;
      SCOPED_TRACE(runtime::concat(scheme, " over ", name(layout)));
      TrainConfig config = on({1, 4}, name(layout));
      config.parallelism.context_parallel_scheme = scheme;
      if (runs % 2 == 1) config.activation_checkpoint.mode = "full";
      if (runs % 3 == 0) config.training.tokens_per_step = 3 * kSeqLen;  // the last pass goes alone
      const auto apart = run_training(config, kVocabulary, documents, {.steps = 2});
      config.training.interleave = 2;
      expect_equal_within(run_training(config, kVocabulary, documents, {.steps = 2}), apart, 0);
      ++runs;
    }
  }
  EXPECT_GT(runs, 35) << "schemes and layouts that suit";
  TrainConfig tied = on({2, 2});
  tied.model.tie_word_embeddings = true;
  const auto apart = run_training(tied, kVocabulary, documents, {.steps = 1});
  tied.training.interleave = 2;
  expect_equal_within(run_training(tied, kVocabulary, documents, {.steps = 1}), apart, 1e-6);
}

TEST(Trainer, PrefixMaskLearnsAndGoesOnBitForBit) {
  const test::TempDirectory folder;
  const std::string checkpoints = (folder / "checkpoints").string();
  TrainConfig config = on({1, 3}, "zigzag", 2);
  config.data.mask = "prefix_document";
  config.data.prefix = 9;
  const auto straight = run_training(config, kVocabulary, documents);
  EXPECT_LT(straight.back().loss, straight.front().loss);
  run_training(config, kVocabulary, documents, {.steps = 10, .save_to = checkpoints});
  const auto rest =
      run_training(config, kVocabulary, documents, {.steps = 10, .load_from = checkpoints});
  expect_equal_within(rest, {straight.begin() + 10, straight.end()}, 0);
}

TEST(Trainer, RecomputationAndRerunsAreBitwiseEqual) {
  TrainConfig config = on({1, 3});
  const auto kept = run_training(config, kVocabulary, documents, {.steps = 5});
  const auto again = run_training(config, kVocabulary, documents, {.steps = 5});
  config.activation_checkpoint.mode = "full";
  const auto recomputed = run_training(config, kVocabulary, documents, {.steps = 5});
  expect_equal_within(again, kept, 0);
  expect_equal_within(recomputed, kept, 0);
}

TEST(Trainer, Bfloat16StaysCloseOverRanks) {
  TrainConfig one = on({1, 1}), four = on({1, 4});
  one.training.dtype = four.training.dtype = runtime::DType::bfloat16;
  // Each rank count rounds in other places; the bound is bfloat16's relative spacing, 2^-7.
  expect_equal_within(run_training(four, kVocabulary, documents),
                      run_training(one, kVocabulary, documents), 1.0 / 128);
}

TEST(Trainer, AfterItsFirstStepsARunAsksTheSystemForNoMemory) {
  // Documents, and with these layouts the rows of a rank, change from step to step. The model is
  // large enough for a rank's memory to be more than one of the pool's segments.
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "every buffer is a segment of its own under AddressSanitizer";
#endif
  for (const char* scheme : {"ring", "group_cast", "usp"}) {
    for (const char* layout : {"zigzag", "balanced"}) {
      SCOPED_TRACE(runtime::concat(scheme, " over ", layout));
      TrainConfig config = on({1, 4}, layout, 4);
      config.parallelism.context_parallel_scheme = scheme;
      config.model.hidden_size = 64;
      config.model.intermediate_size = 256;
      config.model.head_dim = 16;
      std::atomic<std::int64_t> warm = 0, end = 0;
      const auto after = [&](Trainer& trainer, runtime::Communicator& world) {
        const runtime::Stream stream = runtime::Stream::cpu("count");
        const auto meet = [&] {
          world.barrier(stream);
          stream.synchronize(runtime::deadline_in(60));
        };
        meet();
        warm = runtime::system_allocations();
        meet();
        for (int step = 0; step < 10; ++step) trainer.step();
        meet();
        end = runtime::system_allocations();
        meet();
      };
      run_training(config, kVocabulary, documents, {.steps = 10, .after = after});
      EXPECT_GT(warm, 0);
      EXPECT_EQ(warm, end);
    }
  }
}

// ---- one step ahead
// ------------------------------------------------------------------------------------------

TEST(Ahead, AStepIsLoadedWhileTheOneBeforeItRuns) {
  // Two data ranks take sequences 0, 2 | 1, 3 of the first step and 4, 6 | 5, 7 of the second. The
  // first step cannot end, on either rank, before the second has its batch.
  std::promise<void> second_step;
  std::once_flag once;
  const auto gated = [&, begun = second_step.get_future().share()](std::int64_t number) {
    if (number == 4) std::call_once(once, [&] { second_step.set_value(); });
    if (number == 1 && begun.wait_for(std::chrono::seconds(60)) != std::future_status::ready)
      runtime::fail(runtime::ExitCode::hang, "step 2 is not loaded before step 1 ends");
    return documents(number);
  };
  TrainConfig config = on({2, 1});
  config.comm.timeout_seconds = 120;
  expect_equal_within(
      run_training(config, kVocabulary, gated, {.steps = 3, .loopback = {.timeout_seconds = 120}}),
      run_training(config, kVocabulary, documents, {.steps = 3}), 0);
}

TEST(Ahead, SlowPlanningAddsNoTimeToStepsThatAreLonger) {
  // Whoever is slowed by other load may try again: without overlap it is a second each time.
  const auto ten_steps = [](const RawSequences::Generator& source) {
    const auto results = run_training(on({1, 2}), kVocabulary, source,
                                      {.steps = 11, .loopback = {.latency_seconds = 0.011}});
    double seconds = 0;  // but for the first, which nothing runs before
    for (std::size_t step = 1; step < results.size(); ++step) {
      EXPECT_GE(results[step].seconds, 0.3);
      seconds += results[step].seconds;
    }
    return seconds;
  };
  const auto slow = [](std::int64_t number) {  // each sequence is asked for documents and for rows
    std::this_thread::sleep_for(std::chrono::milliseconds(100) / 8);
    return documents(number);
  };
  double longer = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    longer = ten_steps(slow) - ten_steps(documents);
    std::printf("ten steps took %.3f s longer\n", longer);
    if (longer <= 0.5) return;
  }
  FAIL() << "ten steps took " << longer << " s longer";
}

TEST(Ahead, ADamagedBlockFailsTheStepThatNeedsIt) {
  // Each sequence is a block. The third step takes sequences 8 to 11.
  std::vector<std::int32_t> tokens;
  for (std::int64_t sequence = 0; sequence < 40; ++sequence) {
    const std::vector<std::int32_t> more = documents(sequence).tokens;
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  const std::vector<std::int64_t> lengths(tokens.size() / 10, 10);
  const test::TempDirectory folder;
  const auto corpus = [&](const std::set<std::int64_t>& damaged) {
    test::write_small_blocks(folder / "c.h5", tokens, lengths, kSeqLen, damaged);
    return runtime::Corpus::open(folder / "c.h5");
  };
  const runtime::Corpus good = corpus({});
  const auto whole = std::make_shared<const runtime::Sequences>(good, kSeqLen, 7);
  // A sequence's last label is in the block behind it: damaged is one behind none of steps 1 and 2.
  std::int64_t block = -1;
  for (std::int64_t number = 8; number < 12; ++number) {
    const std::int64_t begin = whole->first_token(number);
    bool needed = false;
    for (std::int64_t before = 0; before < 8; ++before)
      needed |= whole->first_token(before) + kSeqLen == begin;
    if (!needed) block = begin / kSeqLen;
  }
  ASSERT_GE(block, 0);
  const runtime::Corpus bad = corpus({block});
  const auto damaged = std::make_shared<const runtime::Sequences>(bad, kSeqLen, 7);
  const TrainConfig config = on({2, 2});
  expect_equal_within(run_training(config, kVocabulary, damaged, {.steps = 2}),
                      run_training(config, kVocabulary, whole, {.steps = 2}), 0);
  test::expect_error(runtime::ExitCode::data, "'block_hashes'",
                     [&] { run_training(config, kVocabulary, damaged, {.steps = 3}); });
}

// ---- stop and resume
// ------------------------------------------------------------------------------------

TEST(Resume, TenAndTenStepsAreTwentyBitForBit) {
  const test::TempDirectory folder;
  const std::string checkpoints = (folder / "checkpoints").string();
  const TrainConfig config = on({2, 2});
  const auto straight = run_training(config, kVocabulary, documents);
  run_training(config, kVocabulary, documents, {.steps = 10, .save_to = checkpoints});
  const auto rest =
      run_training(config, kVocabulary, documents, {.steps = 10, .load_from = checkpoints});
  expect_equal_within(rest, {straight.begin() + 10, straight.end()}, 0);
}

TEST(Resume, OnOtherGridsTheNextLossesAndSamplesAreTheSame) {
  const test::TempDirectory folder;
  const std::string checkpoints = (folder / "checkpoints").string();
  const auto straight = run_training(on({1, 4}), kVocabulary, documents);
  run_training(on({1, 4}), kVocabulary, documents, {.steps = 10, .save_to = checkpoints});
  for (const Grid grid : {Grid{1, 1}, Grid{1, 2}, Grid{2, 1}, Grid{1, 8}, Grid{2, 4}}) {
    SCOPED_TRACE("data " + std::to_string(grid.data) + " x context " +
                 std::to_string(grid.context));
    std::mutex mutex;
    std::set<std::int64_t> seen;
    const auto watched = [&](std::int64_t cursor) {
      const std::lock_guard lock(mutex);
      seen.insert(cursor);
      return documents(cursor);
    };
    const auto rest =
        run_training(on(grid), kVocabulary, watched, {.steps = 10, .load_from = checkpoints});
    expect_equal_within(rest, {straight.begin() + 10, straight.end()}, 1e-5);
    EXPECT_EQ(seen.size(), 40u);
    EXPECT_EQ(*seen.begin(), 40);
    EXPECT_EQ(*seen.rbegin(), 79);
  }
}

TEST(Resume, GoingBackForgetsWhatWasLoadedAhead) {
  const test::TempDirectory folder;
  const std::string checkpoints = (folder / "checkpoints").string();
  const TrainConfig config = on({1, 3});
  const auto straight = run_training(config, kVocabulary, documents, {.steps = 8});
  run_training(config, kVocabulary, documents, {.steps = 4, .save_to = checkpoints});
  std::mutex mutex;
  const auto go_back = [&](Trainer& trainer, runtime::Communicator& world) {
    const runtime::Stream stream = runtime::Stream::cpu("host");
    trainer.load(runtime::Checkpoint::open(checkpoints, 4, world, stream));
    EXPECT_EQ(trainer.cursor(), 16);
    for (std::size_t step = 4; step < 8; ++step) {
      const StepResult again = trainer.step();
      const std::lock_guard lock(mutex);
      expect_equal_within({again}, {straight[step]}, 0);
    }
  };
  run_training(config, kVocabulary, documents, {.steps = 7, .after = go_back});
}

TEST(Resume, RefusesWhatWouldNotBeTheSameRun) {
  const test::TempDirectory folder;
  const std::string checkpoints = (folder / "checkpoints").string();
  run_training(on({1, 2}), kVocabulary, documents, {.steps = 1, .save_to = checkpoints});
  const auto resume = [&](const TrainConfig& config, std::int64_t vocabulary) {
    run_training(config, vocabulary, documents, {.steps = 1, .load_from = checkpoints});
  };
  TrainConfig other = on({1, 2});
  other.debug.seed = 6;
  test::expect_error(runtime::ExitCode::config, "debug.seed", [&] { resume(other, kVocabulary); });
  other = on({1, 2});
  other.training.seq_len = 96;
  other.training.tokens_per_step = 4 * 96;
  test::expect_error(runtime::ExitCode::config, "training.seq_len",
                     [&] { resume(other, kVocabulary); });
  other = on({1, 2});
  other.model.intermediate_size = 48;
  test::expect_error(runtime::ExitCode::config,
                     "model.intermediate_size = 48: the checkpoint was made with 40",
                     [&] { resume(other, kVocabulary); });
  test::expect_error(runtime::ExitCode::config,
                     "model.vocab_size = 32: the checkpoint was made with 31", [&] {
                       resume(on({1, 2}), kVocabulary + 1);
                     });
}

// ---- it learns
// ------------------------------------------------------------------------------------------

// Recall. The first three quarters hold one token for each of 8 keys, (key, value), among noise;
// the last quarter asks for keys, and the label is the key's value. Under a contiguous layout over
// 4 ranks every answer lies in another rank's shard.
constexpr std::int64_t kKeys = 8, kValues = 8, kRecallLen = 64;
constexpr std::int64_t kQuery = kKeys * kValues, kNoise = kQuery + kKeys, kAnswer = kNoise + 8;
constexpr std::int64_t kRecallVocabulary = kAnswer + kValues;

RawSequence recall(std::int64_t cursor) {
  std::mt19937_64 random(static_cast<std::uint64_t>(cursor) + 99);
  const auto draw = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  RawSequence sequence;
  sequence.documents = {0, kRecallLen};
  sequence.labels.assign(kRecallLen, -1);
  for (std::int64_t i = 0; i < kRecallLen; ++i) {
    sequence.tokens.push_back(static_cast<std::int32_t>(kNoise + draw(8)));
    sequence.positions.push_back(static_cast<std::int32_t>(i));
  }
  std::vector<std::int64_t> places(kRecallLen * 3 / 4);
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), random);
  std::vector<std::int64_t> values;
  for (std::int64_t key = 0; key < kKeys; ++key) {
    values.push_back(draw(kValues));
    sequence.tokens[static_cast<std::size_t>(places[static_cast<std::size_t>(key)])] =
        static_cast<std::int32_t>(key * kValues + values.back());
  }
  for (std::size_t i = kRecallLen * 3 / 4; i < kRecallLen; ++i) {
    const std::int64_t key = draw(kKeys);
    sequence.tokens[i] = static_cast<std::int32_t>(kQuery + key);
    sequence.labels[i] = static_cast<std::int32_t>(kAnswer + values[static_cast<std::size_t>(key)]);
  }
  return sequence;
}

/// The same sequence for a model that sees only its own shard: every shard is a document.
RawSequence recall_in_shards(std::int64_t cursor) {
  RawSequence sequence = recall(cursor);
  sequence.documents = {0, kRecallLen / 4, kRecallLen / 2, kRecallLen * 3 / 4, kRecallLen};
  return sequence;
}

double recall_accuracy(const RawSequences::Generator& source, std::int64_t steps) {
  TrainConfig config = small_training(kRecallLen);
  config.model.hidden_size = 64;
  config.model.intermediate_size = 96;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 4;
  config.model.head_dim = 16;
  config.training.micro_batch_size = 16;
  config.training.tokens_per_step = 16 * kRecallLen;
  config.training.steps = steps;
  config.optimizer.lr = 4e-3;
  config.lr_scheduler.warmup_steps = 20;
  config.parallelism.context_parallel_degree = 4;
  config.parallelism.context_parallel_layout = "contiguous";
  std::mutex mutex;
  std::int64_t right = 0, asked = 0;
  RunSteps options;
  options.steps = steps;
  options.after = [&](Trainer& trainer, runtime::Communicator&) {
    for (std::int64_t batch = 0; batch < 8; ++batch) {
      std::vector<std::int64_t> unseen(16);
      std::iota(unseen.begin(), unseen.end(), 1'000'000 + batch * 16);
      const models::Evaluation evaluation = trainer.evaluate(RawSequences(source), unseen).tensors;
      const std::lock_guard lock(mutex);
      for (std::int64_t row = 0; row < evaluation.row_loss.elements(); ++row) {
        asked += evaluation.row_loss.as<float>()[row] > 0 ? 1 : 0;
        right += evaluation.row_correct.as<std::uint8_t>()[row];
      }
    }
  };
  run_training(config, kRecallVocabulary, source, options);
  EXPECT_EQ(asked, 8 * 16 * kRecallLen / 4);
  return static_cast<double>(right) / static_cast<double>(asked);
}

TEST(Learning, RecallAcrossRanksAndChanceWithinTheOwnShard) {
  const double across = recall_accuracy(recall, 600);
  const double within = recall_accuracy(recall_in_shards, 600);
  std::printf("recall accuracy: %.3f across ranks, %.3f within the own shard (chance %.3f)\n",
              across, within, 1.0 / kValues);
  EXPECT_GE(across, 0.95);
  EXPECT_LE(within, 2.0 / kValues);
}

}  // namespace
}  // namespace longhaul::launch
