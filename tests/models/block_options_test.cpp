// The options of attention and MLP blocks, as published families combine them and as none does,
// against the definition in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "models/family_impl.h"
#include "models/rope.h"
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
using test::OracleForm;
using test::read;
using test::read_bytes;
using test::relative_error;
using test::Rig;
using test::with_rigs;

constexpr double kLossBound = 3e-6;
constexpr double kGradientBound = 1e-5;  // between any two ways to compute the same step in fp32

/// A model all of whose layers are alike.
struct Case {
  std::string name;
  BranchShape branch = {};
  AttentionShape attention = {};
  MlpShape mlp = {};
  bool fused_gate_up = false;
  double embedding_multiplier = 1, logit_cap = 0;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

std::vector<Case> cases() {
  Case biases{"biases"}, qwen2{"qwen2"}, olmo2{"olmo2"}, gemma2{"gemma2"}, gpt_oss{"gpt_oss"},
      phi3{"phi3"}, sigmoid{"sigmoid"}, odd{"odd"}, weighed{"weighed"};
  biases.attention.qkv_bias = biases.attention.o_bias = biases.mlp.bias = true;
  qwen2.attention.qkv_bias = true;
  olmo2.branch.norms = NormPlaces::after;
  olmo2.attention.qk_norm = QkNorm::row;
  gemma2.branch.norms = NormPlaces::both;
  gemma2.branch.norm_offset = 1;
  gemma2.attention.scale = 0.3;
  gemma2.attention.softcap = 0.7;
  gemma2.mlp.activation = Activation::geglu;
  gemma2.embedding_multiplier = std::sqrt(10);
  gemma2.logit_cap = 1.5;
  gpt_oss.attention.qkv_bias = gpt_oss.attention.o_bias = gpt_oss.attention.sinks = true;
  phi3.attention.fused_qkv = phi3.fused_gate_up = true;
  sigmoid.attention.weighting = attention::Weighting::sigmoid;
  sigmoid.attention.bias = -1.25;
  odd.branch.norms = NormPlaces::both;
  odd.branch.residual = {.alpha = 1.5, .beta = 0.75, .of_norm = true};
  odd.attention.fused_qkv = odd.attention.qkv_bias = odd.attention.o_bias = true;
  odd.attention.sinks = odd.attention.output_gate = true;
  odd.attention.softcap = 0.9;
  odd.attention.qk_norm = QkNorm::row;
  odd.mlp.activation = Activation::geglu;
  odd.mlp.bias = odd.fused_gate_up = true;
  odd.logit_cap = 2;
  weighed.branch.norms = NormPlaces::after;
  weighed.branch.residual = {.alpha = 0.5, .beta = 1.25};
  weighed.attention.output_gate = weighed.attention.o_bias = true;
  weighed.attention.qk_norm = QkNorm::head;
  return {biases, qwen2, olmo2, gemma2, gpt_oss, phi3, sigmoid, odd, weighed};
}

ModelConfig config_of(DType dtype = DType::float32) {
  ModelConfig config;
  config.hidden_size = 6;
  config.intermediate_size = 7;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 4;
  config.rms_norm_eps =
      1e-2;  // heads of few dims may be small; their norms are to be well conditioned
  config.rope_theta = 100;
  config.tie_word_embeddings = false;
  config.vocab_size = 11;
  config.tie_word_embeddings = false;
  config.dtype = dtype;
  return config;
}

/// Of norms before and after, in Gemma 2's words where there are both.
struct NormNames {
  std::string attention, attention_after, mlp, mlp_after;
};
NormNames norm_names(NormPlaces places) {
  const std::string input = "input_layernorm.weight", post = "post_attention_layernorm.weight",
                    pre_mlp = "pre_feedforward_layernorm.weight",
                    post_mlp = "post_feedforward_layernorm.weight";
  if (places == NormPlaces::before) return {input, "", post, ""};
  if (places == NormPlaces::after) return {"", post, "", post_mlp};
  return {input, post, pre_mlp, post_mlp};
}

Model model_of_case(const Case& c, const ModelConfig& config, const ModelOptions& options) {
  BranchShape branch = c.branch;
  branch.hidden = config.hidden_size;
  branch.norm_eps = *config.rms_norm_eps;
  branch.dtype = config.dtype;
  AttentionShape attention = c.attention;
  attention.branch = branch;
  attention.heads = *config.num_attention_heads;
  attention.kv_heads = *config.num_key_value_heads;
  attention.head_dim = *config.head_dim;
  MlpShape mlp = c.mlp;
  mlp.branch = branch;
  mlp.intermediate = *config.intermediate_size;
  const NormNames norms = norm_names(branch.norms);
  const auto full = [](const std::string& layer, const std::string& name) {
    return name.empty() ? name : layer + name;
  };

  Assembly model(config, branch);
  model.parts.ropes = {make_rope({*config.head_dim, *config.rope_theta})};
  model.parts.embedding_multiplier = c.embedding_multiplier;
  model.parts.masks = {{std::nullopt, config.num_hidden_layers}};
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = model.layer();
    model.add<AttentionBlock>(attention, std::size_t{0},
                              BlockNames{full(prefix, norms.attention), prefix + "self_attn.",
                                         full(prefix, norms.attention_after)});
    MlpNames names = llama_mlp(prefix);
    names.norm = full(prefix, norms.mlp);
    names.norm_after = full(prefix, norms.mlp_after);
    if (c.fused_gate_up) names.gate = names.up = prefix + "mlp.gate_up_proj.weight";
    model.add<MlpBlock>(mlp, names);
  }
  ModelParts parts = model.finish();
  parts.head.softcap = c.logit_cap;
  return {std::move(parts), options};
}

OracleForm form_of_case(const Case& c, const ModelConfig& config) {
  OracleForm form = test::oracle_form(config);
  const NormNames norms = norm_names(c.branch.norms);
  form.attention_norm = norms.attention;
  form.attention_norm_after = norms.attention_after;
  form.mlp_norm = norms.mlp;
  form.mlp_norm_after = norms.mlp_after;
  form.norm_offset = c.branch.norm_offset;
  form.qk_norm = c.attention.qk_norm != QkNorm::none;
  form.output_gate = c.attention.output_gate;
  form.scale = c.attention.scale.value_or(form.scale);
  form.score_cap = c.attention.softcap;
  form.logit_cap = c.logit_cap;
  form.sigmoid = c.attention.weighting == attention::Weighting::sigmoid;
  form.sigmoid_bias = c.attention.bias;
  form.gelu = c.mlp.activation == Activation::geglu;
  form.embedding_multiplier = c.embedding_multiplier;
  form.attention_alpha = form.mlp_alpha = c.branch.residual.alpha;
  form.attention_beta = form.mlp_beta = c.branch.residual.beta;
  form.residual_of_norm = c.branch.residual.of_norm;
  return form;
}

void with_case(int ranks, const Case& c, const ModelConfig& config, const ModelOptions& options,
               const std::function<void(Rig&)>& body, int threads = 1) {
  with_rigs(
      ranks, [&] { return model_of_case(c, config, options); }, config.dtype, body, threads);
}

void expect_gradients(const NamedValues& actual, const NamedValues& expected, double bound) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, values] : expected)
    EXPECT_LE(relative_error(actual.at(name), values), bound) << name;
}

class OptionsOf : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Blocks, OptionsOf, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(OptionsOf, LossAndEveryGradientMatchDifferencesOfTheOracleOverRanks) {
  const ModelConfig config = config_of();
  const OracleForm form = form_of_case(GetParam(), config);
  const OracleBatch batch = document_batch(config, {5, 1, 7}, 3);
  const double scale = 1.0 / 9;
  NamedValues expected;
  double expected_loss = 0;
  for (const auto& [ranks, scheme] :
       {std::pair{1, "ring"}, std::pair{3, "burst"}, std::pair{2, "ulysses"}}) {
    SCOPED_TRACE(scheme);
    std::mutex mutex;
    NamedValues sum;
    double loss = 0, evaluated = 0;
    with_case(ranks, GetParam(), config, {.head_chunk_rows = 5}, [&](Rig& rig) {
      rig.attention.set_scheme(parallel::parse_scheme(scheme));
      const Batch mine = rig.use(batch);
      const double evaluated_here = read(rig.evaluate(mine).loss_sum, rig.stream)[0];
      const double here = read(rig.forward_backward(mine, {scale, {}}), rig.stream)[0];
      const NamedValues gradients = rig.gradients();
      const std::lock_guard lock(mutex);
      loss += here;
      evaluated += evaluated_here;
      for (const auto& [name, values] : gradients) {
        auto& total = sum.try_emplace(name, values.size()).first->second;
        for (std::size_t i = 0; i < values.size(); ++i) total[i] += values[i];
      }
      if (!expected.empty()) return;
      expected_loss = test::oracle_loss(config, form, rig.parameters(), batch);
      expected = test::oracle_gradients(config, form, rig.parameters(), batch);
      for (auto& [name, values] : expected) {
        for (double& value : values) value *= scale;
      }
    });
    EXPECT_NEAR(loss, expected_loss, kLossBound * expected_loss);
    EXPECT_NEAR(evaluated, expected_loss, kLossBound * expected_loss);
    expect_gradients(sum, expected, kGradientBound);
  }
}

/// An option of a case taken away.
struct Flip {
  std::string what;
  OracleForm form;
  NamedValues parameters;
};
std::vector<Flip> flips(const Case& c, const ModelConfig& config, const NamedValues& parameters) {
  const OracleForm form = form_of_case(c, config), plain = test::oracle_form(config);
  std::vector<Flip> all;
  const auto without = [&](const std::string& suffix) {
    Flip flip{"no " + suffix, form, parameters};
    std::erase_if(flip.parameters, [&](const auto& p) { return p.first.ends_with(suffix); });
    if (flip.parameters.size() < parameters.size()) all.push_back(flip);
  };
  for (const char* suffix :
       {"q_proj.bias", "k_proj.bias", "v_proj.bias", "qkv_proj.bias", "o_proj.bias",
        "gate_proj.bias", "up_proj.bias", "down_proj.bias", "sinks"})
    without(suffix);
  const auto changed = [&](const char* what, auto member) {
    if (form.*member == plain.*member) return;
    all.push_back({what, form, parameters});
    all.back().form.*member = plain.*member;
  };
  changed("offset", &OracleForm::norm_offset);
  changed("qk norm", &OracleForm::qk_norm);
  changed("scale", &OracleForm::scale);
  changed("score cap", &OracleForm::score_cap);
  changed("logit cap", &OracleForm::logit_cap);
  changed("sigmoid", &OracleForm::sigmoid);
  changed("sigmoid bias", &OracleForm::sigmoid_bias);
  changed("gelu", &OracleForm::gelu);
  changed("embedding multiplier", &OracleForm::embedding_multiplier);
  changed("alpha", &OracleForm::mlp_alpha);
  changed("beta", &OracleForm::mlp_beta);
  changed("residual of norm", &OracleForm::residual_of_norm);
  for (auto norm : {&OracleForm::attention_norm, &OracleForm::attention_norm_after,
                    &OracleForm::mlp_norm, &OracleForm::mlp_norm_after}) {
    if ((form.*norm).empty()) continue;
    all.push_back({"no " + form.*norm, form, parameters});
    (all.back().form.*norm).clear();
  }
  if (c.attention.qk_norm == QkNorm::row) {
    all.push_back({"norm of heads", form, parameters});
    for (auto& [name, values] : all.back().parameters) {
      if (name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight"))
        values.resize(static_cast<std::size_t>(*config.head_dim));
    }
  }
  return all;
}

TEST_P(OptionsOf, LogitsAreTheOraclesAndEachOptionMovesThem) {
  const ModelConfig config = config_of();
  const OracleBatch batch = document_batch(config, {7, 4}, 5);
  with_case(1, GetParam(), config, {}, [&](Rig& rig) {
    const std::vector<double> logits = read(rig.logits(rig.use(batch), 0, 11), rig.stream);
    const NamedValues parameters = rig.parameters();
    EXPECT_LE(relative_error(logits, test::oracle_logits(config, form_of_case(GetParam(), config),
                                                         parameters, batch)),
              kLossBound);
    for (const Flip& flip : flips(GetParam(), config, parameters)) {
      EXPECT_GE(
          relative_error(logits, test::oracle_logits(config, flip.form, flip.parameters, batch)),
          1000 * kLossBound)
          << flip.what;
    }
  });
}

/// Every parameter moved by the largest bfloat16 rounding, up or down.
void move_parameters(const Rig& rig, unsigned seed) {
  std::vector<double> values = read(rig.store.values(), rig.stream);
  const std::vector<double> random = test::random_values(std::ssize(values), seed);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] *= random[i] < 0 ? 1 - 0x1p-9 : 1 + 0x1p-9;
  copy(test::make_tensor(values, {std::ssize(values)}, DType::float32, rig.stream),
       rig.store.values(), rig.stream);
}

TEST_P(OptionsOf, BFloat16IsWithinItsRounding) {
  // Parameters are exact in bfloat16. A value passes about thirty roundings a layer, forward and
  // back; independent errors add like their square root. What one of them does to a gradient is
  // what moving every parameter by one does in float32, which is held to the oracle above: the most
  // of four draws, and at least its own size.
  const OracleBatch batch = document_batch(config_of(), {5, 1, 7}, 3);
  const auto run = [&](DType dtype, unsigned moved = 0) {
    NamedValues results;
    with_case(1, GetParam(), config_of(dtype), {}, [&](Rig& rig) {
      if (moved > 0) move_parameters(rig, moved);
      const Tensor loss = rig.forward_backward(rig.use(batch), {1, {}});
      results = rig.gradients();
      results["the loss"] = read(loss, rig.stream);
    });
    return results;
  };
  const NamedValues rounded = run(DType::bfloat16), exact = run(DType::float32);
  std::map<std::string, double> effect;
  for (const unsigned seed : {1u, 2u, 3u, 4u}) {
    for (const auto& [name, values] : run(DType::float32, seed)) {
      double& most = effect.try_emplace(name, 0x1p-9).first->second;
      most = std::max(most, relative_error(values, exact.at(name)));
    }
  }
  const double roundings = std::sqrt(30.0 * static_cast<double>(config_of().num_hidden_layers));
  for (const auto& [name, values] : exact)
    EXPECT_LE(relative_error(rounded.at(name), values), roundings * effect.at(name)) << name;
}

TEST_P(OptionsOf, RecomputationThreadsAndInterleavingAreBitwiseEqual) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const ModelConfig config = config_of(dtype);
    const OracleBatch first = document_batch(config, {60, 30, 1}, 7),
                      second = document_batch(config, {9, 44}, 8);
    std::vector<std::vector<std::byte>> expected(2);
    for (const Recompute mode : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const bool together : {false, true}) {
        SCOPED_TRACE(runtime::concat(name(dtype), " recompute ", static_cast<int>(mode),
                                     together ? " together" : ""));
        with_case(
            2, GetParam(), config, {.recompute = mode, .head_chunk_rows = 16},
            [&](Rig& rig) {
              const std::vector<Batch> mine{rig.use(first), rig.use(second)};
              for (std::size_t i = 0; i < 2; i += together ? 2 : 1)
                static_cast<void>(rig.model.forward_backward(
                    rig.resources, std::span(mine).subspan(i, together ? 2 : 1), {0.1, {}}));
              const auto gradients = read_bytes(rig.store.gradients(), rig.stream);
              auto& of_rank = expected[static_cast<std::size_t>(rig.rank)];
              if (of_rank.empty()) of_rank = gradients;
              EXPECT_EQ(gradients, of_rank);
            },
            together ? 2 : 1);
      }
    }
  }
}

TEST_P(OptionsOf, PassBytesAreWhatIsHeld) {
  // Sizes whose tensors are whole units of the pool, and in which one half of a layer decides.
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const bool wide : {false, true}) {
      for (const Recompute mode : {Recompute::none, Recompute::selective}) {
        SCOPED_TRACE(runtime::concat(name(dtype), wide ? " wide" : "", " recompute ",
                                     static_cast<int>(mode)));
        ModelConfig config = config_of(dtype);
        config.hidden_size = 64;
        config.head_dim = 16;
        config.num_attention_heads = config.num_key_value_heads = wide ? 16 : 4;
        config.intermediate_size = wide ? 128 : 1024;
        const ModelOptions options{.recompute = mode, .head_chunk_rows = 8};
        const Model model = model_of_case(GetParam(), config, options);
        const std::vector<parallel::CallBytes> calls(1);
        const auto predicted = static_cast<double>(model.pass_bytes(256, calls, 1) -
                                                   256 * 4 * size_bytes(DType::int32));
        double measured = 0;
        with_case(1, GetParam(), config, options, [&](Rig& rig) {
          const std::vector<Batch> mine{rig.use(document_batch(config, {256}, 5))};
          rig.store.refresh_working_copy(rig.stream);
          const std::int64_t before = rig.stream.memory().current_bytes;
          rig.stream.reset_peak();
          const auto losses = rig.model.forward_backward(rig.resources, mine, {1, {}});
          measured = static_cast<double>(rig.stream.memory().peak_bytes - before);
        });
        const auto panels = static_cast<double>(test::product_bytes(model, 256));
        EXPECT_LE(predicted, 1.02 * measured);
        EXPECT_GE(predicted + panels, 0.98 * measured);
      }
    }
  }
}

TEST(BlockOptions, ParametersBeginAndDecayAsPublished) {
  const auto ends = [](const std::string& name, const char* with) { return name.ends_with(with); };
  for (const Case& c : cases()) {
    const ModelConfig config = config_of();
    with_case(1, c, config, {}, [&](Rig& rig) {
      rig.store.initialise(3, rig.stream);
      for (const auto& p : rig.store.table().parameters()) {
        SCOPED_TRACE(c.name + " " + p.name);
        EXPECT_EQ(p.weight_decay, p.sizes.size() == 2 && !ends(p.name, "embed_tokens.weight"));
        const std::vector<double> values = read(rig.store.value(p.name), rig.stream);
        const bool norm = p.name.find("norm") != p.name.npos, bias = ends(p.name, ".bias");
        const bool of_rows = ends(p.name, "o_proj.bias") || ends(p.name, "down_proj.bias");
        if (bias) {
          EXPECT_EQ(p.tensor_dim, of_rows ? -1 : 0);
        }
        if (norm || bias) {
          const double start = norm ? 1 - c.branch.norm_offset : 0;
          EXPECT_EQ(values, std::vector<double>(values.size(), start));
        } else {
          EXPECT_NE(values.front(), values.back());
        }
      }
    });
  }
}

TEST(BlockOptions, WhatMeansNothingIsRefused) {
  const auto refused = [](const char* message, const std::function<void(Case&)>& spoil) {
    Case c{"refused"};
    spoil(c);
    expect_error(ExitCode::config, message, [&] { model_of_case(c, config_of(), {}); });
  };
  refused("a sigmoid has none", [](Case& c) {
    c.attention.weighting = attention::Weighting::sigmoid;
    c.attention.sinks = true;
  });
  refused("for sigmoid attention only", [](Case& c) { c.attention.bias = -1; });
  refused("needs a norm before the branch", [](Case& c) {
    c.branch.norms = NormPlaces::after;
    c.branch.residual.of_norm = true;
  });
}

}  // namespace
}  // namespace longhaul::models
