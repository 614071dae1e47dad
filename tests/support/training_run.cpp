#include "tests/support/training_run.h"

#include <gtest/gtest.h>

#include <bit>
#include <utility>

#include "launch/attention_axis.h"
#include "launch/device.h"
#include "models/family.h"

namespace longhaul::test {

launch::TrainConfig small_training(std::int64_t seq_len) {
  launch::TrainConfig config;
  config.model.architecture = "llama";
  config.model.hidden_size = 24;
  config.model.intermediate_size = 40;
  config.model.num_hidden_layers = 2;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 2;
  config.model.head_dim = 8;
  config.model.rms_norm_eps = 1e-5;
  config.model.rope_theta = 10000;
  config.data.mask = "documents";
  config.data.positions = "auto";
  config.training.seq_len = seq_len;
  config.training.micro_batch_size = 1;
  config.training.tokens_per_step = 4 * seq_len;
  config.training.steps = 20;
  config.training.max_norm = 1;
  config.optimizer = {"adamw", 1e-3, 0.9, 0.95, 1e-8, 0.1};
  config.lr_scheduler = {2, "cosine", 0.1};
  config.parallelism.context_parallel_degree = 1;
  config.parallelism.context_parallel_scheme = "ring";
  config.parallelism.context_parallel_linear_scheme = "auto";
  config.parallelism.context_parallel_switch = "none";
  config.parallelism.context_parallel_layout = "zigzag";
  config.parallelism.data_parallel_replicate_degree = 1;
  config.parallelism.tensor_parallel_degree = 1;
  config.parallelism.pipeline_parallel_degree = 1;
  config.parallelism.shard = "none";
  config.attention_servers.mode = "in_place";
  config.activation_checkpoint.mode = "none";
  config.debug.seed = 5;
  return config;
}

std::vector<launch::StepResult> run_training(const launch::TrainConfig& config,
                                             std::int64_t vocabulary,
                                             const RawSequences::Generator& sequences,
                                             const RunSteps& options) {
  return run_training(config, vocabulary, std::make_shared<const RawSequences>(sequences), options);
}

std::vector<launch::StepResult> run_training(
    const launch::TrainConfig& config, std::int64_t vocabulary,
    const std::shared_ptr<const runtime::SequenceSource>& sequences, const RunSteps& options) {
  const int ranks = launch::attention_axis(config).world_size();
  std::vector<std::vector<launch::StepResult>> results(static_cast<std::size_t>(ranks));
  runtime::run_loopback(ranks, options.loopback, [&](std::unique_ptr<runtime::Communicator> world) {
    launch::TrainerInputs inputs;
    inputs.config = config;
    models::complete(inputs.config.model);
    inputs.vocab_size = vocabulary;
    inputs.sequences = sequences;
    inputs.corpus_digest = "test";
    if (launch::on_cuda(config)) inputs.device = {runtime::DeviceKind::cuda, 0};
    launch::Trainer trainer(std::move(inputs), *world);
    trainer.initialise();
    const runtime::Stream stream = runtime::Stream::cpu("host");
    if (!options.load_from.empty() && !trainer.serves()) {
      const auto newest =
          runtime::Checkpoint::open_newest(options.load_from, trainer.trainers(), stream);
      ASSERT_TRUE(newest.has_value());
      trainer.load(*newest);
    }
    trainer.begin();
    auto& mine = results[static_cast<std::size_t>(world->rank())];
    for (std::int64_t step = 0; step < options.steps; ++step) mine.push_back(trainer.step());
    if (!options.save_to.empty()) trainer.save(options.save_to, 0);
    if (options.after) options.after(trainer, *world);
  });
  for (const auto& rank : results) {
    for (std::size_t step = 0; step < rank.size(); ++step) {
      const auto bits = [](double value) { return std::bit_cast<std::uint64_t>(value); };
      EXPECT_EQ(bits(rank[step].loss), bits(results[0][step].loss));
      EXPECT_EQ(bits(rank[step].grad_norm), bits(results[0][step].grad_norm));
    }
  }
  return results[0];
}

}  // namespace longhaul::test
