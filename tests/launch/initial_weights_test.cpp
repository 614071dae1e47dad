// Runs that begin with weights: checkpoint.initial_load_path.
#include "launch/initial_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "launch/convert.h"
#include "launch/trainer.h"
#include "runtime/comm/loopback.h"
#include "tests/support/expect_error.h"
#include "tests/support/hf_folders.h"
#include "tests/support/small_blocks.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_job.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
using runtime::ExitCode;
using test::RawSequence;
using test::RawSequences;
using test::TempDirectory;

constexpr std::int64_t kVocabulary = 31, kSeqLen = 97;

RawSequence sequence(std::int64_t cursor) {
  return test::random_sequence(kVocabulary, kSeqLen, cursor);
}

/// The loss of some sequences, forward only, on every rank's rows together.
double loss_of(Trainer& trainer) {
  const RawSequences source(sequence);
  const std::vector<std::int64_t> numbers = {40};
  return trainer.sum_over_ranks({trainer.evaluate(source, numbers).loss})[0];
}

/// The loss with weights that are read from `path`.
double loss_from(const fs::path& path, TrainConfig config, int ranks) {
  config.debug.seed = 99;  // other weights, were they drawn
  config.parallelism.context_parallel_degree = ranks;
  double loss = 0;
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    TrainerInputs inputs;
    inputs.config = config;
    inputs.vocab_size = kVocabulary;
    inputs.sequences = std::make_shared<const RawSequences>(sequence);
    inputs.corpus_digest = "test";
    Trainer trainer(std::move(inputs), *world);
    trainer.initialise();
    const runtime::Stream stream = runtime::Stream::cpu("host");
    const auto source = open_weights(path, trainer.trainers(), stream);
    trainer.load_weights(*source);
    trainer.begin();
    EXPECT_EQ(trainer.completed_steps(), 0);
    EXPECT_EQ(trainer.cursor(), 0);
    const double mine = loss_of(trainer);
    if (world->rank() == 0) loss = mine;
  });
  return loss;
}

TEST(InitialWeights, GiveTheLossOfTheCheckpointOnAnyNumberOfRanks) {
  const TempDirectory folder;
  TrainConfig config = test::small_training(kSeqLen);
  double expected = 0, drawn = 0;
  test::RunSteps steps{.steps = 3, .save_to = folder.file("run")};
  steps.after = [&](Trainer& trainer, runtime::Communicator&) { expected = loss_of(trainer); };
  test::run_training(config, kVocabulary, sequence, steps);
  test::RunSteps none{.steps = 0};
  none.after = [&](Trainer& trainer, runtime::Communicator&) { drawn = loss_of(trainer); };
  test::run_training(config, kVocabulary, sequence, none);
  ASSERT_GT(std::abs(drawn - expected), 1e-3 * expected);

  testing::internal::CaptureStdout();
  run_convert({folder / "run", folder / "hf", std::nullopt});
  run_convert({folder / "hf", folder / "weights", std::nullopt});
  testing::internal::GetCapturedStdout();
  for (const char* const source : {"run", "hf", "weights"}) {
    SCOPED_TRACE(source);
    EXPECT_EQ(loss_from(folder / source, config, 1), expected);
    const double on_three = loss_from(folder / source, config, 3);
    EXPECT_NEAR(on_three, expected, 1e-6 * expected);
  }
}

TEST(InitialWeights, OfAnotherModelAreRefused) {
  const TempDirectory folder;
  test::write_hf_folder(folder / "hf", test::llama_config(), test::llama_tensors());
  const HfFolder source(folder / "hf");
  TrainConfig config;
  config.model = source.model();
  config.training.seq_len = 512;
  config.model.rope_theta = 1e6;
  const std::vector<std::string> lines = require_fitting_weights(source, config, 31);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_NE(lines[0].find(folder.file("hf") + ": 21 tensors in 1 file"), std::string::npos);
  EXPECT_EQ(lines[1], "changed  model.rope_theta from 500000.0 to 1000000.0");
  EXPECT_EQ(lines[2], "length   512 a sequence; the weights were made for 128");
  config.model.intermediate_size = 48;
  test::expect_error(ExitCode::config, "rope_local_base_freq, rope_scaling, max_position",
                     [&] { require_fitting_weights(source, config, 31); });
  test::expect_error(ExitCode::config, "model.intermediate_size = 48: the weights' is 24",
                     [&] { require_fitting_weights(source, config, 31); });
  config.model = source.model();
  config.model.vocab_size.reset();
  test::expect_error(ExitCode::config, "model.vocab_size = 256, the corpus's: the weights' is 31",
                     [&] { require_fitting_weights(source, config, 256); });
}

// What an exported folder tells of them.
TEST(InitialWeights, TheRunsBeforeAreToldInTheirOrder) {
  const TempDirectory folder;
  TrainConfig config = test::small_training(kSeqLen);
  test::run_training(config, kVocabulary, sequence, {.steps = 3, .save_to = folder.file("first")});
  config = test::small_training(64);
  config.model = open_weights(folder / "first")->model();  // with its defaults
  runtime::run_loopback(1, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    TrainerInputs inputs;
    inputs.config = config;
    inputs.vocab_size = kVocabulary;
    inputs.sequences = std::make_shared<const RawSequences>(
        [](std::int64_t cursor) { return test::random_sequence(kVocabulary, 64, cursor); });
    inputs.corpus_digest = "test";
    Trainer trainer(std::move(inputs), *world);
    trainer.initialise();
    trainer.load_weights(*open_weights(folder / "first"));
    trainer.begin();
    trainer.step();
    trainer.save(folder / "second", 0);
    // It goes on from its own checkpoint, and knows them still.
    trainer.load(runtime::Checkpoint::open(folder / "second", 1));
    trainer.step();
    trainer.save(folder / "second", 0);
  });
  testing::internal::CaptureStdout();
  run_convert({folder / "second", folder / "hf", std::nullopt});
  testing::internal::GetCapturedStdout();
  const std::string readme = test::read_text(folder / "hf/README.md");
  const std::vector<std::string> expected = {
      "- Steps: 5, 1,676 tokens.\n",
      "  - 3, 1,164 tokens, in sequences of 97: `" + folder.file("first/step-00000003") + "`\n",
      "  - 2, 512 tokens, in sequences of 64: `" + folder.file("second/step-00000002") + "`\n",
      "- Length: trained on sequences of up to 97 tokens.\n"};
  for (const std::string& line : expected)
    EXPECT_NE(readme.find(line), std::string::npos) << line << readme;
}

TEST(InitialWeights, GiveWayToTheRunsOwnCheckpoint) {
  const test::TrainingJob job;
  const std::vector<std::string> first = {"training.steps=2", "lr_scheduler.warmup_steps=1",
                                          "comm.backend=loopback",
                                          "parallelism.context_parallel_degree=1"};
  ASSERT_EQ(job.run(0, "first", first).exit_code, 0);
  std::vector<std::string> sets = first;
  sets.push_back("checkpoint.initial_load_path=" + job.output("first"));
  const test::ProcessResult begun = job.run(0, "second", sets);
  ASSERT_EQ(begun.exit_code, 0) << begun.err;
  EXPECT_NE(begun.out.find("the checkpoint of step 2\n"), std::string::npos) << begun.out;
  EXPECT_NE(job.steps("second").at(1), job.steps("first").at(1));
  sets[0] = "training.steps=3";
  const test::ProcessResult resumed = job.run(0, "second", sets);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_NE(resumed.out.find("resumed  from the checkpoint of step 2\n"), std::string::npos)
      << resumed.out;
  EXPECT_EQ(resumed.out.find("weights  from"), std::string::npos) << resumed.out;

  sets.back() = "checkpoint.initial_load_path=" + job.output("nothing");
  EXPECT_EQ(job.run(0, "second", sets).exit_code, 0);  // it has no more need of them
  const test::ProcessResult missing = job.run(0, "third", sets);
  EXPECT_EQ(missing.exit_code, 78);
  EXPECT_NE(missing.err.find("expected a folder"), std::string::npos) << missing.err;
}

}  // namespace
}  // namespace longhaul::launch
