// Hybrid models in training: the same losses however many ranks share a sequence, by whatever
// linear scheme, recomputed, interleaved, and resumed on another grid.
#include <gtest/gtest.h>

#include <cmath>

#include "launch/schemes.h"
#include "models/family.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using test::run_training;
using test::RunSteps;

constexpr std::int64_t kSeqLen = 97, kVocabulary = 31;  // a prime: ragged everywhere

test::RawSequence documents(std::int64_t cursor) {
  return test::random_sequence(kVocabulary, kSeqLen, cursor);
}

struct Grid {
  std::int64_t data = 1, context = 1;
};

/// Three layers of Gated DeltaNet to one of softmax attention.
models::ModelConfig gated_delta_net() {
  models::ModelConfig m;
  m.architecture = "qwen3_next";
  m.hidden_size = 24;
  m.intermediate_size = 40;
  m.num_hidden_layers = 4;
  m.mlp_only_layers = {0, 1, 2, 3};
  m.full_attention_interval = 4;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 8;
  m.linear_num_key_heads = 2;
  m.linear_num_value_heads = 4;
  m.linear_key_head_dim = 8;
  m.linear_value_head_dim = 6;
  return m;
}

/// Nine layers of Mamba-2 to one of softmax attention.
models::ModelConfig mamba() {
  models::ModelConfig m;
  m.architecture = "granitemoehybrid";
  m.hidden_size = 24;
  m.num_hidden_layers = 10;
  m.layer_types.assign(10, "mamba");
  m.layer_types[5] = "attention";
  m.num_local_experts = 0;
  m.shared_intermediate_size = 40;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.mamba_n_heads = 6;
  m.mamba_d_head = 8;
  m.mamba_d_state = 8;
  m.mamba_n_groups = 2;
  m.mamba_expand = 2;
  return m;
}

/// One softmax layer in four, as LASP-2H.
models::ModelConfig linear_llama() {
  models::ModelConfig m;
  m.architecture = "linear_llama3";
  m.hidden_size = 24;
  m.intermediate_size = 40;
  m.num_hidden_layers = 4;
  m.layer_types = {"linear_attention", "linear_attention", "linear_attention", "full_attention"};
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 8;
  m.linear_attention = "gla";
  return m;
}

/// Kimi Delta Attention alone.
models::ModelConfig kda() {
  models::ModelConfig m;
  m.architecture = "kimi_linear";
  m.hidden_size = 24;
  m.intermediate_size = 40;
  m.num_hidden_layers = 2;
  m.first_k_dense_replace = 2;
  m.linear_attn_config.kda_layers = {1, 2};
  m.linear_attn_config.num_heads = 2;
  m.linear_attn_config.head_dim = 8;
  return m;
}

TrainConfig hybrid(const models::ModelConfig& model, Grid grid,
                   const std::string& linear_scheme = "auto") {
  TrainConfig config = test::small_training(kSeqLen);
  config.model = model;
  models::complete(config.model);
  config.parallelism.context_parallel_degree = grid.context;
  config.parallelism.data_parallel_replicate_degree = grid.data;
  config.parallelism.context_parallel_linear_scheme = linear_scheme;
  config.training.steps = 50;
  return config;
}

void expect_close(const std::vector<StepResult>& actual, const std::vector<StepResult>& expected,
                  double relative) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t step = 0; step < actual.size(); ++step) {
    EXPECT_NEAR(actual[step].loss, expected[step].loss, relative * expected[step].loss) << step;
    EXPECT_NEAR(actual[step].grad_norm, expected[step].grad_norm,
                10 * relative * expected[step].grad_norm)
        << step;
  }
}

class Hybrid : public testing::TestWithParam<std::pair<const char*, models::ModelConfig (*)()>> {};

TEST_P(Hybrid, GivesTheSameLossesOnEveryGrid) {
  const models::ModelConfig model = GetParam().second();
  const RunSteps steps{.steps = 50};
  const auto single = run_training(hybrid(model, {1, 1}), kVocabulary, documents, steps);
  EXPECT_LT(single.back().loss, 0.95 * single.front().loss) << "it learns";
  for (const Grid grid : {Grid{1, 2}, Grid{1, 4}, Grid{1, 8}, Grid{2, 2}, Grid{2, 4}}) {
    SCOPED_TRACE(runtime::concat("data ", grid.data, " x context ", grid.context));
    TrainConfig config = hybrid(model, grid);
    config.activation_checkpoint.mode = grid.context == 4   ? "full"
                                        : grid.context == 8 ? "selective"
                                                            : "none";
    expect_close(run_training(config, kVocabulary, documents, steps), single, 1e-4);
  }
}

/// Recurrences and convolutions go over data x context as well, and past the servers.
TEST_P(Hybrid, GivesTheSameLossesWithAttentionServers) {
  const models::ModelConfig model = GetParam().second();
  const RunSteps steps{.steps = 4};
  const auto single = run_training(hybrid(model, {1, 1}), kVocabulary, documents, steps);
  for (const char* layout : {"packed", "zigzag"}) {
    for (const std::int64_t servers : {0, 1, 2}) {
      SCOPED_TRACE(runtime::concat(servers, " servers, ", layout));
      TrainConfig config = hybrid(model, {2, servers == 1 ? 1 : 2});
      config.parallelism.context_parallel_scheme = "disaggregated";
      config.parallelism.context_parallel_layout = layout;
      if (servers > 0) {
        config.attention_servers.mode = "dedicated";
        config.attention_servers.count = servers;
      }
      config.activation_checkpoint.mode = servers == 1 ? "full" : "none";
      config.training.interleave = servers == 2 ? 2 : 1;
      expect_close(run_training(config, kVocabulary, documents, steps), single, 1e-5);
    }
  }
}

TEST_P(Hybrid, GivesTheSameLossesByEverySchemeAndLayout) {
  const models::ModelConfig model = GetParam().second();
  const RunSteps steps{.steps = 6};
  const auto single = run_training(hybrid(model, {1, 1}), kVocabulary, documents, steps);
  for (const char* scheme :
       {"lasp", "lasp(replay=true)", "lasp2", "all_scan(blocks=2)", "exscan"}) {
    for (const char* layout : {"contiguous", "zigzag", "document_zigzag", "balanced"}) {
      SCOPED_TRACE(runtime::concat(scheme, " over ", layout));
      TrainConfig config = hybrid(model, {1, 3}, scheme);
      config.parallelism.context_parallel_layout = layout;
      expect_close(run_training(config, kVocabulary, documents, steps), single, 1e-5);
    }
  }
}

/// Recomputation and interleaving change no bit; of what ranks exchange, selective recomputation
/// repeats nothing, full recomputation softmax attention's forward alone.
TEST_P(Hybrid, RecomputesWithoutRepeatingExchanges) {
  const models::ModelConfig model = GetParam().second();
  const auto run = [&](const char* mode, std::int64_t interleave) {
    TrainConfig config = hybrid(model, {1, 4});
    config.activation_checkpoint.mode = mode;
    config.training.interleave = interleave;
    std::pair<std::vector<StepResult>, std::int64_t> result;
    result.first =
        run_training(config, kVocabulary, documents,
                     {.steps = 5, .after = [&](Trainer& trainer, runtime::Communicator& world) {
                        EXPECT_EQ(trainer.attention().unprepared_calls(), 0);
                        if (world.rank() == 1) result.second = trainer.attention().sent_bytes();
                      }});
    return result;
  };
  const auto kept = run("none", 1);
  EXPECT_GT(kept.second, 0);
  const bool all_linear = GetParam().first == std::string("Kda");
  for (const std::int64_t interleave : {1, 2}) {
    for (const char* mode : {"none", "selective", "full"}) {
      SCOPED_TRACE(runtime::concat(mode, ", interleave ", interleave));
      const auto again = run(mode, interleave);
      expect_close(again.first, kept.first, 0);
      if (mode == std::string("full") && !all_linear) {
        EXPECT_GT(again.second, kept.second);
      } else {
        EXPECT_EQ(again.second, kept.second);
      }
    }
  }
}

TEST_P(Hybrid, ResumesOnAnotherGrid) {
  const models::ModelConfig model = GetParam().second();
  const test::TempDirectory folder;
  const auto straight = run_training(hybrid(model, {1, 4}), kVocabulary, documents, {.steps = 8});
  run_training(hybrid(model, {1, 4}), kVocabulary, documents,
               {.steps = 4, .save_to = folder.path().string()});
  const std::vector<StepResult> rest(straight.begin() + 4, straight.end());
  for (const Grid grid : {Grid{1, 4}, Grid{1, 2}, Grid{1, 8}, Grid{2, 2}}) {
    SCOPED_TRACE(runtime::concat("data ", grid.data, " x context ", grid.context));
    const auto resumed = run_training(hybrid(model, grid), kVocabulary, documents,
                                      {.steps = 4, .load_from = folder.path().string()});
    expect_close(resumed, rest, grid.data == 1 && grid.context == 4 ? 0 : 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Hybrid,
                         testing::Values(std::pair{"GatedDeltaNet", &gated_delta_net},
                                         std::pair{"Mamba2", &mamba},
                                         std::pair{"LinearLlama3", &linear_llama},
                                         std::pair{"Kda", &kda}),
                         [](const auto& test) { return std::string(test.param.first); });

TEST(HybridSchemes, AreNamedAtTheStart) {
  TrainConfig config = hybrid(gated_delta_net(), {1, 4});
  EXPECT_EQ(schemes_text(config), "ring");
  const std::string text = linear_text(config).value_or("");
  EXPECT_NE(text.find(" (chosen by auto: "), std::string::npos) << text;
  config.parallelism.context_parallel_linear_scheme = "all_scan";
  EXPECT_EQ(linear_text(config), "all_scan");
  config.model = hybrid(kda(), {1, 4}).model;
  EXPECT_EQ(schemes_text(config), "none");
  EXPECT_EQ(linear_text(config), "all_scan");
  EXPECT_EQ(linear_text(test::small_training(kSeqLen)), std::nullopt);
}

}  // namespace
}  // namespace longhaul::launch
