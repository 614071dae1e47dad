// Families of softmax attention in training: the same losses on one rank and on four.
#include <gtest/gtest.h>

#include "tests/support/family_configs.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

constexpr std::int64_t kSeqLen = 61, kVocabulary = 31;  // a prime: ragged everywhere

test::RawSequence documents(std::int64_t cursor) {
  return test::random_sequence(kVocabulary, kSeqLen, cursor);
}

/// Lines of a model beside those of its family.
struct Case {
  const char *name, *family;
  test::ModelLines lines = {};
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

models::ModelConfig model_of(const Case& c) {
  test::ModelLines lines = test::family_lines(c.family);
  for (const auto& [key, value] : c.lines) lines[key] = value;
  return test::family_config(lines).model;
}

std::vector<StepResult> train(const models::ModelConfig& model, std::int64_t ranks,
                              const char* scheme) {
  TrainConfig config = test::small_training(kSeqLen);
  config.model = model;
  config.parallelism.context_parallel_degree = ranks;
  config.parallelism.context_parallel_scheme = scheme;
  return test::run_training(config, kVocabulary, documents);
}

class FamilyTraining : public testing::TestWithParam<Case> {};

TEST_P(FamilyTraining, GivesTheSameLossesOnOneRankAndOnFour) {
  const models::ModelConfig model = model_of(GetParam());
  const std::vector<StepResult> single = train(model, 1, "ring");
  ASSERT_EQ(single.size(), 20u);
  EXPECT_LT(single.back().loss, 0.98 * single.front().loss) << "it learns";
  for (const char* scheme : {"ring", "usp(heads=2)"}) {
    const std::vector<StepResult> spread = train(model, 4, scheme);
    for (std::size_t step = 0; step < single.size(); ++step) {
      EXPECT_NEAR(spread[step].loss, single[step].loss, 1e-5 * single[step].loss)
          << scheme << ", step " << step;
      EXPECT_NEAR(spread[step].grad_norm, single[step].grad_norm, 1e-4 * single[step].grad_norm)
          << scheme << ", step " << step;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Of, FamilyTraining,
    testing::Values(Case{"llama",
                         "llama",
                         {{"attention_bias", "true"},
                          {"mlp_bias", "true"},
                          {"attn_logit_softcapping", "2.0"},
                          {"attention_sinks", "true"},
                          {"rope_scaling.rope_type", "\"llama3\""},
                          {"rope_scaling.factor", "8.0"},
                          {"rope_scaling.low_freq_factor", "1.0"},
                          {"rope_scaling.high_freq_factor", "4.0"},
                          {"rope_scaling.original_max_position_embeddings", "32"}}},
                    Case{"llama_sigmoid",
                         "llama",
                         {{"attention_weighting", "\"sigmoid\""},
                          {"attention_sigmoid_bias", "-4.1"}}},
                    Case{"mistral", "mistral"}, Case{"qwen2", "qwen2"},
                    Case{"qwen3", "qwen3", {{"attention_bias", "true"}}}, Case{"gemma2", "gemma2"},
                    Case{"gemma3_text", "gemma3_text"},
                    Case{"phi3",
                         "phi3",
                         {{"max_position_embeddings", "128"},
                          {"rope_scaling.rope_type", "\"longrope\""},
                          {"rope_scaling.short_factor", "[1.0, 1.0, 1.0, 1.0]"},
                          {"rope_scaling.long_factor", "[1.0, 1.5, 2.0, 4.0]"}}},
                    Case{"olmo2", "olmo2"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace longhaul::launch
