// Training on a CUDA device is the CPU's training: the same losses over ranks and schemes, the same
// checkpoints. The oracle is a run on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "launch/device.h"
#include "launch/trainer.h"
#include "parallel/schemes/expression.h"
#include "runtime/error.h"
#include "runtime/ops/host_copy.h"
#include "tests/support/gpu.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_job.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using runtime::DType;
using test::run_training;
using test::small_training;

constexpr std::int64_t kVocabulary = 31;
constexpr std::int64_t kSeqLen = 97;  // a prime: ragged over every number of ranks

test::RawSequence documents(std::int64_t number) {
  return test::random_sequence(kVocabulary, kSeqLen, number);
}

TrainConfig on_cpu() { return small_training(kSeqLen); }

TrainConfig on_gpu(std::int64_t context = 1, std::int64_t data = 1) {
  TrainConfig config = small_training(kSeqLen);
  config.device.kind = "cuda";
  config.comm.backend = "loopback";
  config.parallelism.context_parallel_degree = context;
  config.parallelism.data_parallel_replicate_degree = data;
  return config;
}

/// The largest relative difference of a step's losses.
double difference(const std::vector<StepResult>& a, const std::vector<StepResult>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (std::size_t step = 0; step < std::min(a.size(), b.size()); ++step) {
    EXPECT_FALSE(std::isnan(a[step].loss)) << "step " << step;
    most = std::max(most, std::abs(a[step].loss - b[step].loss) / std::abs(b[step].loss));
    EXPECT_EQ(a[step].labels, b[step].labels);
    EXPECT_EQ(a[step].area, b[step].area);
  }
  return most;
}

constexpr double kFloat32 = 1e-4;

TEST(TrainerCuda, LossesAndNormsAreTheCpusInFloat32) {
  LONGHAUL_NEEDS_GPU();
  const auto expected = run_training(on_cpu(), kVocabulary, documents);
  const auto results = run_training(on_gpu(), kVocabulary, documents);
  EXPECT_LE(difference(results, expected), kFloat32);
  for (std::size_t step = 0; step < results.size(); ++step) {
    EXPECT_NEAR(results[step].grad_norm, expected[step].grad_norm, 1e-3 * expected[step].grad_norm);
    EXPECT_TRUE(std::isnan(results[step].comm_seconds));
  }
}

TEST(TrainerCuda, EverySchemeOverLogicalRanksOfOneGpu) {
  LONGHAUL_NEEDS_GPU();
  const auto expected = run_training(on_cpu(), kVocabulary, documents);
  const auto expect_same = [&](std::int64_t ranks, const std::string& scheme,
                               const std::string& layout) {
    SCOPED_TRACE(scheme + " over " + layout + ", " + std::to_string(ranks) + " ranks");
    TrainConfig config = on_gpu(ranks);
    config.parallelism.context_parallel_scheme = scheme;
    config.parallelism.context_parallel_layout = layout;
    EXPECT_LE(difference(run_training(config, kVocabulary, documents), expected), kFloat32);
  };
  expect_same(2, "ring", "zigzag");
  expect_same(2, "burst", "striped");
  for (const std::string& scheme : parallel::scheme_names())
    expect_same(4, scheme, scheme == "balanced_ring" ? "contiguous" : "zigzag");
  expect_same(4, "group_cast", "balanced");
  expect_same(4, "usp(heads=2, around=double_ring)", "zigzag");
}

TEST(TrainerCuda, EveryWayToSpendMemoryGivesTheSameLosses) {
  LONGHAUL_NEEDS_GPU();
  const auto expected = run_training(on_cpu(), kVocabulary, documents);
  TrainConfig recomputed = on_gpu(2);
  recomputed.activation_checkpoint.mode = "full";
  EXPECT_LE(difference(run_training(recomputed, kVocabulary, documents), expected), kFloat32);
  TrainConfig sharded = on_gpu(1, 2);
  sharded.parallelism.shard = "optimizer";
  EXPECT_LE(difference(run_training(sharded, kVocabulary, documents), expected), kFloat32);
  TrainConfig interleaved = on_gpu(2);
  interleaved.training.interleave = 2;
  EXPECT_LE(difference(run_training(interleaved, kVocabulary, documents), expected), kFloat32);
}

/// A run in bfloat16 is off by what its rounding does, on either device.
TEST(TrainerCuda, Bfloat16IsAsFarFromFloat32AsOnTheCpu) {
  LONGHAUL_NEEDS_GPU();
  const auto exact = run_training(on_cpu(), kVocabulary, documents);
  TrainConfig rounded = on_cpu();
  rounded.training.dtype = DType::bfloat16;
  const double unit = std::ldexp(1.0, -8);  // of the type
  const double bound =
      std::max(2 * difference(run_training(rounded, kVocabulary, documents), exact), unit);
  for (const std::int64_t ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    TrainConfig config = on_gpu(ranks);
    config.training.dtype = DType::bfloat16;
    EXPECT_LE(difference(run_training(config, kVocabulary, documents), exact), bound);
  }
}

TEST(TrainerCuda, ACheckpointGoesOnOnTheOtherDevice) {
  LONGHAUL_NEEDS_GPU();
  const auto whole = run_training(on_cpu(), kVocabulary, documents);
  const std::vector<StepResult> second(whole.begin() + 10, whole.end());
  for (const bool gpu_first : {true, false}) {
    SCOPED_TRACE(gpu_first ? "from the GPU to the CPU" : "from the CPU to the GPU");
    const test::TempDirectory folder;
    run_training(gpu_first ? on_gpu(2) : on_cpu(), kVocabulary, documents,
                 {.steps = 10, .save_to = folder.path()});
    const auto rest = run_training(gpu_first ? on_cpu() : on_gpu(2), kVocabulary, documents,
                                   {.steps = 10, .load_from = folder.path()});
    EXPECT_LE(difference(rest, second), kFloat32);
  }
}

TEST(TrainerCuda, ACheckpointHoldsTheDevicesBits) {
  LONGHAUL_NEEDS_GPU();
  const test::TempDirectory folder;
  const auto values_of = [](Trainer& trainer) {
    const auto values = runtime::ops::download<float>(trainer.store().values(), trainer.compute());
    trainer.compute().synchronize(runtime::deadline_in(60));
    return *values;
  };
  std::vector<float> saved, loaded;
  run_training(on_gpu(), kVocabulary, documents,
               {.steps = 3, .save_to = folder.path(), .after = [&](Trainer& trainer, auto&) {
                  saved = values_of(trainer);
                }});
  run_training(on_cpu(), kVocabulary, documents,
               {.steps = 0, .load_from = folder.path(), .after = [&](Trainer& trainer, auto&) {
                  loaded = values_of(trainer);
                }});
  EXPECT_EQ(saved, loaded);
}

TEST(TrainerCuda, ANormThatIsNotFiniteEndsTheRunAndUpdatesNothing) {
  LONGHAUL_NEEDS_GPU();
  run_training(
      on_gpu(), kVocabulary, documents,
      {.steps = 2, .after = [&](Trainer& trainer, auto&) {
         const runtime::Stream& stream = trainer.compute();
         runtime::fill(trainer.store().value("model.layers.0.mlp.up_proj.weight"),
                       std::numeric_limits<double>::infinity(), stream);
         const auto states = [&] {
           std::vector<std::shared_ptr<const std::vector<float>>> all;
           for (const runtime::TensorSlice& slice : trainer.checkpoint_slices()) {
             const std::int64_t elements = slice.view.elements();
             all.push_back(runtime::ops::download<float>(slice.view.reshape({elements}), stream));
           }
           stream.synchronize(runtime::deadline_in(60));
           return all;
         };
         const auto before = states();
         try {
           trainer.step();
           FAIL() << "a step with infinite weights was made";
         } catch (const runtime::Error& error) {
           EXPECT_EQ(error.code(), runtime::ExitCode::internal);
           EXPECT_NE(std::string(error.what()).find("gradient norm of step 3 is"),
                     std::string::npos)
               << error.what();
         }
         EXPECT_EQ(trainer.completed_steps(), 2);
         const auto after = states();
         ASSERT_EQ(after.size(), before.size());
         for (std::size_t i = 0; i < after.size(); ++i) EXPECT_EQ(*after[i], *before[i]);
       }});
}

TEST(TrainerCuda, ValidationIsTheCpus) {
  LONGHAUL_NEEDS_GPU();
  const test::RawSequences source(documents);
  const auto loss_on = [&](const TrainConfig& config) {
    double loss = 0;
    run_training(config, kVocabulary, documents,
                 {.steps = 1, .after = [&](Trainer& trainer, auto& world) {
                    double own = 0;  // two in a row, of documents of their own
                    for (const std::int64_t first : {100, 102})
                      own += trainer.evaluate(source, std::vector{first, first + 1}).loss;
                    const double all = trainer.sum_over_ranks({own})[0];
                    if (world.rank() == 0) loss = all;
                  }});
    return loss;
  };
  const double expected = loss_on(on_cpu());
  for (const std::int64_t ranks : {1, 3})
    EXPECT_NEAR(loss_on(on_gpu(ranks)), expected, kFloat32 * expected) << ranks;
}

TEST(TrainerCuda, TheProgramSaysWhatItRunsOn) {
  LONGHAUL_NEEDS_GPU();
  const test::TrainingJob job;
  const auto result =
      job.run(0, "out",
              {"device.kind=cuda", "comm.backend=loopback", "training.steps=3",
               "lr_scheduler.warmup_steps=0", "parallelism.context_parallel_degree=2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"devices  rank 0 on GPU 0 ", "matmul of 8,192 x 8,192 matrices",
                           "| comm - |", "step 3/3 | loss "}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
  EXPECT_EQ(job.checkpoints("out"), std::vector<std::int64_t>{3});
  // And goes on on the CPU.
  const auto more =
      job.run(0, "out",
              {"comm.backend=loopback", "training.steps=4", "lr_scheduler.warmup_steps=0",
               "parallelism.context_parallel_degree=1"});
  EXPECT_EQ(more.exit_code, 0) << more.err;
  EXPECT_NE(more.out.find("changed  device.kind from \"cuda\" to \"cpu\""), std::string::npos)
      << more.out;
}

}  // namespace
}  // namespace longhaul::launch
