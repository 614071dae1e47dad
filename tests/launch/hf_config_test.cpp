// config.json to [model] and back.
#include "launch/hf_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/support/expect_error.h"
#include "tests/support/hf_folders.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using test::changed;
using test::expect_error;
using test::llama_config;
using Changes = std::map<std::string, std::string>;

HfConfig parse(const Changes& changes = {}) {
  return parse_hf_config(llama_config(changes), "config.json");
}

TEST(HfConfig, ALlama) {
  const ModelConfig model = parse().model;
  EXPECT_EQ(model.architecture, "llama");
  EXPECT_EQ(model.hidden_size, 16);
  EXPECT_EQ(model.num_key_value_heads, 2);
  EXPECT_EQ(model.head_dim, 4);
  EXPECT_EQ(model.rms_norm_eps, 1e-5);
  EXPECT_EQ(model.rope_theta, 5e5);
  EXPECT_EQ(model.vocab_size, 31);
}

TEST(HfConfig, WhatTheFileDoesNotSayIsTheClasssAndIsTold) {
  const HfConfig config = parse({{"rms_norm_eps", ""}, {"num_key_value_heads", ""}});
  EXPECT_EQ(config.model.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.model.num_key_value_heads, 4);
  EXPECT_EQ(std::ranges::count(config.assumed, "rms_norm_eps = 1e-06"), 1);
  EXPECT_EQ(std::ranges::count(config.assumed, "num_key_value_heads = 4"), 1);
}

TEST(HfConfig, WhatCannotBeHadIsRefused) {
  struct Case {
    ExitCode code;
    std::string said;
    Changes changes;
  };
  const std::vector<Case> cases = {
      {ExitCode::config,
       "\"hidden_act\": \"gelu\": the MLP of llama has silu",
       {{"hidden_act", "\"gelu\""}}},
      {ExitCode::config, "experts are not built", {{"num_local_experts", "8"}}},
      {ExitCode::config,
       "the weights are quantized",
       {{"quantization_config", R"({"quant_method": "mxfp4"})"}}},
      {ExitCode::config, "several kinds of input", {{"text_config", R"({"hidden_size": 3})"}}},
      {ExitCode::config,
       "\"frobnicate\": 3: this program does not know what it changes",
       {{"frobnicate", "3"}}},
      {ExitCode::config, "dropout is not built", {{"attention_dropout", "0.1"}}},
      {ExitCode::config, "\"is_causal\": false: later tokens", {{"is_causal", "false"}}},
      {ExitCode::config, "expected an integer", {{"hidden_size", "\"16\""}}},
      {ExitCode::config, "integer of at least 1", {{"num_hidden_layers", "0"}}},
      {ExitCode::config, "an integer beyond 64 bits", {{"hidden_size", "18446744073709551615"}}},
      {ExitCode::config, "vocab_size", {{"vocab_size", ""}}},
      {ExitCode::config, "'intermediate_size'", {{"intermediate_size", ""}}},
      {ExitCode::config, "rope_scaling = 4: expected an object", {{"rope_scaling", "4"}}},
      {ExitCode::config, "not read yet", {{"model_type", "\"minimax\""}}},
      {ExitCode::config, "frog", {{"model_type", "\"frog\""}}},
      {ExitCode::data, "has no \"model_type\"", {{"model_type", ""}}},
      {ExitCode::data, "no text is its \"model_type\"", {{"model_type", "3"}}},
  };
  for (const Case& wrong : cases) {
    SCOPED_TRACE(wrong.said);
    expect_error(wrong.code, wrong.said, [&] { parse(wrong.changes); });
  }
}

TEST(HfConfig, HostileTexts) {
  std::string deep = llama_config(), many = "{", twice = llama_config();
  deep.insert(deep.rfind('}'), ",\"deep\":" + std::string(100000, '['));
  for (int i = 0; i < 100000; ++i) many += "\"" + std::to_string(i) + "\":0,";
  twice.insert(twice.rfind('}'), ",\"hidden_size\":8");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "is no JSON"},
      {"{", "is no JSON"},
      {"[]", "is no JSON object"},
      {"{\"model_type\": \"llama\"", "is no JSON"},
      {"{\"a\": \"\xff\"}", "is no JSON"},
      {"{\"a\": NaN}", "is no JSON"},
      {deep, "nested deeper"},
      {many, "more than 4096 names"},
      {twice, "twice in an object"}};
  for (const auto& [text, said] : cases) {
    SCOPED_TRACE(said);
    expect_error(ExitCode::data, said, [&, &t = text] { parse_hf_config(t, "config.json"); });
  }
}

TEST(HfConfig, TheTextOfTheSourceIsKept) {
  const std::string source = llama_config({{"frob", ""}, {"custom_id", ""}});
  const ModelConfig model = parse_hf_config(source, "config.json").model;
  const auto before = nlohmann::ordered_json::parse(source);
  const auto after =
      nlohmann::ordered_json::parse(hf_config_text(model, {source, "float16", 4096}));
  for (const auto& [name, value] : before.items()) {
    if (name == "torch_dtype") continue;
    EXPECT_EQ(after.at(name),
              name == "max_position_embeddings" ? nlohmann::ordered_json(4096) : value)
        << name;
  }
  EXPECT_EQ(after.begin().key(), before.begin().key());
  EXPECT_EQ(after.at("torch_dtype"), "float16");
  EXPECT_EQ(after.at("dtype"), "float16");
  EXPECT_EQ(after.at("head_dim"), 4);
}

TEST(HfConfig, OptionsThatTransformersDoesNotHaveAreNotLost) {
  ModelConfig model = parse().model;
  model.layer_types = {"sliding_attention", "full_attention"};
  model.sliding_window = 8;
  expect_error(ExitCode::config, "layer_types", [&] { hf_config_text(model, {"", "float32", 0}); });
  model = parse().model;
  model.layer_types = {"full_attention", "full_attention"};
  model.max_position_embeddings = 32;
  const auto read = parse_hf_config(hf_config_text(model, {"", "float32", 64}), "").model;
  const auto differences = compare_models(model, read);
  ASSERT_EQ(differences.size(), 1u);
  EXPECT_EQ(differences[0].key, "max_position_embeddings");
  EXPECT_EQ(differences[0].after, "64");
}

TEST(HfConfig, AFreshOneSaysWhatTheClassWouldAssume) {
  ModelConfig model = parse({{"model_type", "\"phi3\""},
                             {"mlp_bias", ""},
                             {"max_position_embeddings", "64"},
                             {"original_max_position_embeddings", "16"},
                             {"rope_scaling", R"({"type": "longrope", "factor": 4.0,
                               "short_factor": [1, 2], "long_factor": [2, 4]})"}})
                          .model;
  model.max_position_embeddings.reset();  // nothing follows from it
  const auto json = nlohmann::json::parse(hf_config_text(model, {"", "float32", 48}));
  EXPECT_EQ(json.at("max_position_embeddings"), 48);
  for (const char* const id : {"bos_token_id", "eos_token_id", "pad_token_id"})
    EXPECT_TRUE(json.at(id).is_null()) << id;
  const auto unsaid = nlohmann::json::parse(hf_config_text(model, {"", "float32", 0}));
  EXPECT_FALSE(unsaid.contains("max_position_embeddings"));
}

TEST(HfConfig, ModelsAreComparedByWhatTheyMean) {
  const ModelConfig model = parse().model;
  ModelConfig other = model;
  other.layer_types = {"full_attention", "full_attention"};
  EXPECT_TRUE(compare_models(model, other).empty());
  other.rope_theta = 1e6;
  other.hidden_size = 32;
  const auto differences = compare_models(model, other);
  ASSERT_EQ(differences.size(), 2u);
  EXPECT_EQ(differences[0].key, "hidden_size");
  EXPECT_EQ(differences[1].key, "rope_theta");
  EXPECT_TRUE(is_length_key("rope_theta"));
  EXPECT_TRUE(is_length_key("original_max_position_embeddings"));
  EXPECT_FALSE(is_length_key("hidden_size"));
}

}  // namespace
}  // namespace longhaul::launch
