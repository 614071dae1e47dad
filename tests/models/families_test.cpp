// Families and the options of their softmax layers, against definitions in double; their keys and
// the names of their parameters.
#include "models/family.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <mutex>
#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/host_tensors.h"
#include "tests/support/model_rig.h"

namespace longhaul::models {
namespace {

using runtime::DType;
using runtime::ExitCode;
using runtime::Tensor;
using test::document_batch;
using test::expect_error;
using test::NamedValues;
using test::OracleBatch;
using test::read;
using test::read_bytes;
using test::relative_error;
using test::Rig;
using test::with_rigs;

constexpr double kLossBound = 3e-6;
constexpr double kGradientBound = 1e-5;

ModelConfig base(const std::string& architecture, std::int64_t layers) {
  ModelConfig config;
  config.architecture = architecture;
  config.hidden_size = 10;
  config.num_hidden_layers = layers;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 6;
  config.vocab_size = 17;
  return config;
}

ModelConfig qwen(const std::string& architecture) {
  ModelConfig config = base(architecture, 2);
  config.intermediate_size = 13;
  config.head_dim = 8;
  config.rope_theta = 100;
  config.rms_norm_eps = 1e-6;
  config.partial_rotary_factor = 0.5;
  config.layer_types = {"full_attention", "full_attention"};
  config.linear_num_key_heads = 1;
  config.linear_num_value_heads = 2;
  config.linear_key_head_dim = config.linear_value_head_dim = 3;
  if (architecture == "qwen3_next") config.mlp_only_layers = {1, 0};
  return config;
}

ModelConfig granite(const std::string& positions) {
  ModelConfig config = base("granitemoehybrid", 2);
  config.layer_types = {"attention", "attention"};
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 100;
  config.position_embedding_type = positions;
  config.shared_intermediate_size = 7;
  config.num_local_experts = 0;
  config.embedding_multiplier = 3;
  config.residual_multiplier = 0.22;
  config.attention_multiplier = 0.6;
  config.logits_scaling = 2.5;
  config.mamba_n_heads = 4;
  config.mamba_d_state = 3;
  return config;
}

ModelConfig minimax() {
  ModelConfig config = base("minimax", 2);
  config.intermediate_size = 13;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 100;
  config.layer_types = {"full_attention", "full_attention"};
  config.num_local_experts = 1;
  config.full_attn_alpha_factor = 1.5;
  config.full_attn_beta_factor = 0.75;
  config.mlp_alpha_factor = 0.5;
  config.mlp_beta_factor = 1.25;
  return config;
}

ModelConfig nemotron() {
  ModelConfig config = base("nemotron_h", 4);
  config.intermediate_size = 13;
  config.layer_norm_epsilon = 1e-5;
  config.hybrid_override_pattern = "*-*-";
  config.mamba_num_heads = 2;
  config.mamba_head_dim = config.ssm_state_size = 3;
  config.n_groups = 1;
  return config;
}

struct Case {
  const char* name;
  ModelConfig config;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};
std::vector<Case> softmax_cases() {
  ModelConfig tied = granite("rope");
  tied.tie_word_embeddings = true;
  return {{"qwen3_next", qwen("qwen3_next")},
          {"qwen3_5", qwen("qwen3_5")},
          {"granite_rope", granite("rope")},
          {"granite_nope", granite("nope")},
          {"granite_tied", tied},
          {"minimax", minimax()},
          {"nemotron_h", nemotron()}};
}

/// Families that grew from Llama, with what their keys can say; block_options_test.cpp has more of
/// their blocks.
std::vector<Case> llama_like_cases() {
  const auto llama_like = [](const std::string& architecture) {
    ModelConfig config = base(architecture, 2);
    config.intermediate_size = 13;
    config.rms_norm_eps = 1e-2;  // heads of few dims may be small
    config.rope_theta = 100;
    config.layer_types = {"sliding_attention", "full_attention"};
    config.sliding_window = 3;
    return config;
  };
  ModelConfig qwen2 = llama_like("qwen2"), qwen3 = llama_like("qwen3"),
              gemma2 = llama_like("gemma2"), gemma3 = llama_like("gemma3_text"),
              phi3 = llama_like("phi3"), olmo2 = llama_like("olmo2");
  qwen2.use_sliding_window = qwen3.use_sliding_window = true;
  qwen3.attention_bias = olmo2.attention_bias = true;
  for (ModelConfig* gemma : {&gemma2, &gemma3}) {
    gemma->query_pre_attn_scalar = 3;
    gemma->final_logit_softcapping = 4;
    gemma->tie_word_embeddings = true;
  }
  gemma2.attn_logit_softcapping = 2;
  gemma3.rope_local_base_freq = 10;
  gemma3.rope_scaling.rope_type = "linear";
  gemma3.rope_scaling.factor = 2.5;
  phi3.partial_rotary_factor = 0.7;
  for (ModelConfig* full : {&phi3, &olmo2}) {
    full->layer_types.clear();
    full->sliding_window.reset();
  }
  return {{"qwen2", qwen2},   {"qwen3", qwen3}, {"gemma2", gemma2},
          {"gemma3", gemma3}, {"phi3", phi3},   {"olmo2", olmo2}};
}

/// The first layer carries a state.
std::vector<Case> hybrid_cases() {
  const std::vector<std::string> hybrid = {"linear_attention", "full_attention"};
  std::vector<Case> cases = {{"qwen3_next", qwen("qwen3_next")},
                             {"qwen3_5", qwen("qwen3_5")},
                             {"granite", granite("nope")},
                             {"minimax", minimax()},
                             {"nemotron_h", nemotron()}};
  for (Case& c : cases) {
    if (c.config.layer_types.empty()) continue;
    c.config.layer_types[0] = c.config.architecture == "granitemoehybrid" ? "mamba" : hybrid[0];
  }
  cases[2].config.mamba_d_head = 5;
  cases[3].config.num_hidden_layers = 3;  // the decays are the layer's own
  cases[3].config.layer_types.push_back(hybrid[0]);
  cases[3].config.linear_attn_alpha_factor = 1.25;
  cases[3].config.linear_attn_beta_factor = 0.5;
  cases[4].config.hybrid_override_pattern = "M*-M";

  ModelConfig kimi = base("kimi_linear", 2);
  kimi.num_attention_heads.reset();
  kimi.num_key_value_heads.reset();
  kimi.head_dim.reset();
  kimi.intermediate_size = 13;
  kimi.rms_norm_eps = 1e-5;
  kimi.first_k_dense_replace = 2;
  kimi.linear_attn_config = {{1, 2}, {}, 2, 3, 4};
  cases.push_back({"kimi_linear", kimi});
  struct Kind {
    const char *name, *kind, *feature_map;
    bool normalize;
  };
  for (const auto& [name, kind, feature_map, normalize] :
       {Kind{"linear_llama3_basic", "basic", "elu1", true},
        Kind{"linear_llama3_decay", "decay", "identity", false},
        Kind{"linear_llama3_simple_gla", "simple_gla", "silu", false},
        Kind{"linear_llama3_gla", "gla", "identity", false}}) {
    ModelConfig llama = base("linear_llama3", 2);
    llama.intermediate_size = 13;
    llama.rms_norm_eps = 1e-5;
    llama.rope_theta = 100;
    llama.layer_types = hybrid;
    llama.linear_attention = kind;
    llama.feature_map = feature_map;
    llama.normalize = normalize;
    cases.push_back({name, llama});
  }
  // Documents of a few tokens leave small states; their norms are to be well conditioned.
  for (Case& c : cases) {
    std::optional<double>& eps =
        c.config.architecture == "nemotron_h" ? c.config.layer_norm_epsilon : c.config.rms_norm_eps;
    eps = 1e-2;
  }
  return cases;
}

void expect_gradients(const NamedValues& actual, const NamedValues& expected, double bound) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, values] : expected)
    EXPECT_LE(relative_error(actual.at(name), values), bound) << name;
}

void expect_as_the_oracle(const ModelConfig& config) {
  const OracleBatch batch = document_batch(config, {5, 1, 6}, 3);
  with_rigs(1, config, {.head_chunk_rows = 5}, [&](Rig& rig) {
    const double scale = 1.0 / 9;
    const Batch mine = rig.use(batch);
    const Tensor loss = rig.forward_backward(mine, {scale, {}});
    const NamedValues parameters = rig.parameters();
    const double expected = test::oracle_loss(config, parameters, batch);
    EXPECT_NEAR(read(loss, rig.stream)[0], expected, kLossBound * expected);
    EXPECT_NEAR(read(rig.evaluate(mine).loss_sum, rig.stream)[0], expected, kLossBound * expected);
    EXPECT_LE(relative_error(read(rig.logits(mine, 0, 12), rig.stream),
                             test::oracle_logits(config, parameters, batch)),
              kLossBound);
    NamedValues gradients = test::oracle_gradients(config, parameters, batch);
    for (auto& [name, values] : gradients) {
      for (double& value : values) value *= scale;
    }
    expect_gradients(rig.gradients(), gradients, kGradientBound);
  });
}

void expect_the_same_over_ranks(const ModelConfig& config) {
  const OracleBatch batch = document_batch(config, {3, 1, 20, 9}, 13);
  NamedValues expected;
  double expected_loss = 0;
  for (const int ranks : {1, 2, 3, 5}) {
    std::mutex mutex;
    NamedValues sum;
    double loss = 0;
    with_rigs(ranks, config, {}, [&](Rig& rig) {
      const double here = read(rig.forward_backward(rig.use(batch), {0.05, {}}), rig.stream)[0];
      const NamedValues gradients = rig.gradients();
      const std::lock_guard lock(mutex);
      loss += here;
      for (const auto& [name, values] : gradients) {
        auto& total = sum.try_emplace(name, values.size()).first->second;
        for (std::size_t i = 0; i < values.size(); ++i) total[i] += values[i];
      }
    });
    if (ranks == 1) expected_loss = loss, expected = sum;
    EXPECT_NEAR(loss, expected_loss, 2 * kLossBound * expected_loss);
    expect_gradients(sum, expected, 2 * kGradientBound);  // each is within the bound of the truth
  }
}

class HybridOf : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Families, HybridOf, testing::ValuesIn(hybrid_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(HybridOf, LossLogitsAndEveryGradientMatchDifferencesOfTheOracle) {
  expect_as_the_oracle(GetParam().config);
}

TEST_P(HybridOf, RanksGiveTheSameLossAndGradients) {
  expect_the_same_over_ranks(GetParam().config);
}

class LlamaLike : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Families, LlamaLike, testing::ValuesIn(llama_like_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(LlamaLike, LossLogitsAndEveryGradientMatchDifferencesOfTheOracle) {
  expect_as_the_oracle(GetParam().config);
}

class SoftmaxOf : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Families, SoftmaxOf, testing::ValuesIn(softmax_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(SoftmaxOf, LossLogitsAndEveryGradientMatchDifferencesOfTheOracle) {
  expect_as_the_oracle(GetParam().config);
}

TEST_P(SoftmaxOf, BFloat16IsWithinItsRounding) {
  // As of Llama: about twenty roundings a layer, a few more by its options.
  ModelConfig config = GetParam().config;
  config.dtype = DType::bfloat16;
  const OracleBatch batch = document_batch(config, {5, 1, 6}, 3);
  with_rigs(1, config, {}, [&](Rig& rig) {
    const Tensor loss = rig.forward_backward(rig.use(batch), {1, {}});
    const NamedValues parameters = rig.parameters();
    const double bound =
        0x1p-8 * std::sqrt(26.0 * static_cast<double>(config.num_hidden_layers) + 8);
    const double expected = test::oracle_loss(config, parameters, batch);
    EXPECT_NEAR(read(loss, rig.stream)[0], expected, bound * expected);
    expect_gradients(rig.gradients(), test::oracle_gradients(config, parameters, batch), bound);
  });
}

TEST_P(SoftmaxOf, RecomputationAndThreadsAreBitwiseEqual) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    ModelConfig config = GetParam().config;
    config.dtype = dtype;
    const OracleBatch batch = document_batch(config, {90, 30, 1}, 7);
    std::vector<std::byte> first;
    for (const Recompute mode : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const int threads : {1, 2}) {
        with_rigs(
            1, config, {.recompute = mode},
            [&](Rig& rig) {
              const Tensor loss = rig.forward_backward(rig.use(batch), {0.1, {}});
              const auto gradients = read_bytes(rig.store.gradients(), rig.stream);
              if (first.empty()) first = gradients;
              EXPECT_EQ(gradients, first);
            },
            threads);
      }
    }
  }
}

TEST_P(SoftmaxOf, RanksGiveTheSameLossAndGradients) {
  expect_the_same_over_ranks(GetParam().config);
}

TEST_P(SoftmaxOf, PassBytesAreWhatIsHeld) {
  // Sizes whose tensors are whole units of the pool, and in which one half of a layer decides.
  for (const bool wide : {false, true}) {
    ModelConfig config = GetParam().config;
    config.hidden_size = 64;
    config.head_dim = 16;
    config.num_attention_heads = config.num_key_value_heads = wide ? 16 : 4;
    config.mamba_n_heads = 8;
    std::optional<std::int64_t>& inner = config.architecture == "granitemoehybrid"
                                             ? config.shared_intermediate_size
                                             : config.intermediate_size;
    inner = wide ? 128 : 1024;
    const ModelOptions options{.head_chunk_rows = 8};
    const std::vector<parallel::CallBytes> calls(1);
    const auto predicted = static_cast<double>(model_of(config, options).pass_bytes(256, calls, 1) -
                                               256 * 4 * size_bytes(DType::int32));
    double measured = 0;
    with_rigs(1, config, options, [&](Rig& rig) {
      const std::vector<Batch> mine{rig.use(document_batch(config, {256}, 5))};
      const std::int64_t before = rig.stream.memory().current_bytes;
      rig.stream.reset_peak();
      const auto losses = rig.model.forward_backward(rig.resources, mine, {1, {}});
      measured = static_cast<double>(rig.stream.memory().peak_bytes - before);
    });
    const auto panels = static_cast<double>(test::product_bytes(model_of(config, options), 256));
    EXPECT_LE(predicted, 1.02 * measured) << wide;
    EXPECT_GE(predicted + panels, 0.98 * measured) << wide;
  }
}

TEST(Families, OnlyMatricesDecay) {
  std::vector<Case> cases = softmax_cases();
  for (Case& c : hybrid_cases()) cases.push_back(std::move(c));
  for (Case& c : llama_like_cases()) cases.push_back(std::move(c));
  for (const Case& c : cases) {
    const Model model = model_of(c.config, {});
    for (const parallel::Parameter& parameter : model.table().parameters()) {
      const bool matrix = parameter.sizes.size() == 2 &&
                          parameter.name.find("embed") == std::string::npos &&
                          !parameter.name.ends_with("block_sparse_moe.gate.weight");
      EXPECT_EQ(parameter.weight_decay, matrix) << parameter.name;
    }
  }
}

TEST(Families, ArchitecturesAndWordsAreListed) {
  ModelConfig unknown = minimax();
  unknown.architecture = "mixtral";
  expect_error(ExitCode::config, "expected one of llama, mistral, qwen2, qwen3, ",
               [&] { model_of(unknown, {}); });
  const auto expect_words = [](ModelConfig config, const char* words) {
    config.layer_types.back() = "attn";
    expect_error(ExitCode::config, words, [&] { model_of(config, {}); });
  };
  expect_words(minimax(), "expected full_attention or linear_attention");
  expect_words(granite("rope"), "expected mamba or attention");
  expect_words(qwen("qwen3_5"), "expected full_attention or linear_attention");
}

TEST(Families, WhatIsNotBuiltIsRefusedByName) {
  const auto refused = [](ModelConfig config, const char* message,
                          const std::function<void(ModelConfig&)>& spoil) {
    spoil(config);
    expect_error(ExitCode::config, message, [&] { model_of(config, {}); });
  };
  refused(qwen("qwen3_next"), "mlp_only_layers: layer 1 is not in it and would have experts",
          [](ModelConfig& c) { c.mlp_only_layers = {0}; });
  refused(qwen("qwen3_next"), "mlp_only_layers is missing",
          [](ModelConfig& c) { c.mlp_only_layers = {}; });
  refused(granite("nope"), "num_local_experts: experts are not built",
          [](ModelConfig& c) { c.num_local_experts = 8; });
  refused(minimax(), "num_local_experts: experts are not built",
          [](ModelConfig& c) { c.num_local_experts = 2; });
  refused(nemotron(), "hybrid_override_pattern: letter 1 is 'E', experts, which are not built",
          [](ModelConfig& c) { c.hybrid_override_pattern = "*E*-"; });
}

TEST(Families, RulesOverKeys) {
  const auto refused = [](ModelConfig config, const char* message,
                          const std::function<void(ModelConfig&)>& spoil) {
    spoil(config);
    expect_error(ExitCode::config, message, [&] { model_of(config, {}); });
  };
  refused(qwen("qwen3_5"), "full_attention_interval: layer_types says it",
          [](ModelConfig& c) { c.full_attention_interval = 2; });
  refused(qwen("qwen3_5"), "partial_rotary_factor: it turns 3 of head_dim = 8 dims",
          [](ModelConfig& c) { c.partial_rotary_factor = 0.4; });
  refused(qwen("qwen3_5"), "linear_num_value_heads: expected a multiple of linear_num_key_heads",
          [](ModelConfig& c) { c.linear_num_key_heads = 4; });
  refused(granite("nope"), "mamba_n_heads: expected mamba_n_heads * mamba_d_head = ",
          [](ModelConfig& c) { c.mamba_d_head = 7; });
  refused(granite("nope"), "time_step_limit: expected the lowest and the highest step",
          [](ModelConfig& c) {
            c.time_step_limit = {1, 0.5};
          });
  refused(nemotron(), "hybrid_override_pattern: 3 letters; expected one for each",
          [](ModelConfig& c) { c.hybrid_override_pattern = "*-*"; });
  refused(nemotron(), "mamba_num_heads: expected a multiple of n_groups",
          [](ModelConfig& c) { c.n_groups = 3; });
  refused(minimax(), "layer_types: 1 entry; expected one for each of the num_hidden_layers = 2",
          [](ModelConfig& c) { c.layer_types.pop_back(); });
}

}  // namespace
}  // namespace longhaul::models
