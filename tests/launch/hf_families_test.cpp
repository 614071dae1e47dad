// config.json of published families and of scaled rotary embeddings.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launch/hf_config.h"
#include "tests/support/expect_error.h"
#include "tests/support/hf_folders.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using test::changed;
using test::expect_error;
using test::llama_config;
using Changes = std::map<std::string, std::string>;

HfConfig parse(const Changes& changes) {
  return parse_hf_config(llama_config(changes), "config.json");
}

// What transformers 5.24 makes of both spellings, old, new, both and clashing.
TEST(HfFamilies, RotaryEmbeddingInBothSpellings) {
  struct Case {
    Changes changes;
    double theta;
    std::string type = "";  // "" for default
    double factor = 0;
  };
  const std::string old = R"({"type": "linear", "factor": 4.0})",
                    linear = R"({"rope_type": "linear", "factor": 2.0, "rope_theta": 7000.0})";
  const std::vector<Case> cases = {
      {{}, 5e5},
      {{{"rope_theta", ""}}, 1e4},
      {{{"rope_theta", ""}, {"rope_parameters", R"({"rope_type": "default", "rope_theta": 7000})"}},
       7e3},
      {{{"rope_parameters", R"({"rope_type": "default", "rope_theta": 7000.0})"}}, 7e3},
      {{{"rope_parameters", R"({"rope_type": "default"})"}}, 5e5},
      {{{"rope_scaling", old}}, 5e5, "linear", 4},
      {{{"rope_parameters", linear}}, 7e3, "linear", 2},
      {{{"rope_scaling", old}, {"rope_parameters", linear}}, 5e5, "linear", 4},
      {{{"rope_scaling", linear}}, 7e3, "linear", 2},
      {{{"rope_scaling", R"({"type": "dynamic", "rope_type": "linear", "factor": 3})"}},
       5e5,
       "linear",
       3},
      {{{"rope_scaling", R"({"rope_type": "linear", "factor": 3, "mscale": null})"}},
       5e5,
       "linear",
       3},
  };
  for (const Case& wanted : cases) {
    const std::string text = llama_config(wanted.changes);
    SCOPED_TRACE(text);
    const ModelConfig model = parse_hf_config(text, "config.json").model;
    EXPECT_EQ(model.rope_theta, wanted.theta);
    EXPECT_EQ(model.rope_scaling.rope_type.value_or(""), wanted.type);
    EXPECT_EQ(model.rope_scaling.factor.value_or(0), wanted.factor);
    // And what is written reads the same, by either spelling alone.
    const std::string written = hf_config_text(model, {text, "float32", 0});
    for (const char* const spelling : {"", "rope_scaling", "rope_parameters"}) {
      Changes without;
      if (*spelling != '\0') without[spelling] = "";
      if (std::string(spelling) == "rope_scaling") without["rope_theta"] = "";
      const ModelConfig again = parse_hf_config(changed(written, without), "written").model;
      EXPECT_TRUE(compare_models(model, again).empty()) << spelling << " of " << written;
    }
  }
}

TEST(HfFamilies, NullIsNotAlwaysNothing) {
  const Changes mistral = {
      {"model_type", "\"mistral\""}, {"sliding_window", "null"}, {"num_key_value_heads", "null"}};
  const ModelConfig model = parse(mistral).model;
  EXPECT_EQ(model.sliding_window, std::nullopt);
  EXPECT_EQ(model.num_key_value_heads, 4);
  const Changes gemma = {{"model_type", "\"gemma2\""},
                         {"hidden_activation", "\"gelu_pytorch_tanh\""},
                         {"hidden_act", ""},
                         {"attn_logit_softcapping", "null"},
                         {"mlp_bias", ""}};
  const ModelConfig uncapped = parse(gemma).model;
  EXPECT_EQ(uncapped.attn_logit_softcapping, 0);
  EXPECT_EQ(uncapped.final_logit_softcapping, 30);
  EXPECT_EQ(uncapped.head_dim, 256);
  EXPECT_EQ(uncapped.tie_word_embeddings, false);
}

TEST(HfFamilies, ParametersByTheKindOfLayer) {
  const Changes changes = {{"model_type", "\"gemma3_text\""},
                           {"hidden_act", ""},
                           {"mlp_bias", ""},
                           {"rope_theta", ""},
                           {"_sliding_window_pattern", "2"},
                           {"rope_parameters",
                            R"({"sliding_attention": {"rope_type": "default", "rope_theta": 9000.0},
           "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}})"}};
  const std::string text = llama_config(changes);
  const ModelConfig model = parse_hf_config(text, "config.json").model;
  EXPECT_EQ(model.rope_theta, 1e6);
  EXPECT_EQ(model.rope_local_base_freq, 9e3);
  EXPECT_EQ(model.rope_scaling.factor, 8);
  EXPECT_EQ(model.sliding_window_pattern, 2);
  const std::string written = hf_config_text(model, {text, "float32", 0});
  const auto json = nlohmann::json::parse(written);
  EXPECT_EQ(json.at("layer_types"), nlohmann::json({"sliding_attention", "full_attention"}));
  EXPECT_EQ(json.at("rope_local_base_freq"), 9000.0);
  EXPECT_EQ(json.at("rope_scaling").at("factor"), 8.0);
  EXPECT_EQ(json.at("rope_parameters").at("full_attention").at("factor"), 8.0);
  EXPECT_EQ(json.at("rope_parameters").at("sliding_attention").at("rope_theta"), 9000.0);
  for (const char* const spelling : {"rope_scaling", "rope_parameters"}) {
    const auto again = parse_hf_config(changed(written, {{spelling, ""}}), "written").model;
    EXPECT_TRUE(compare_models(model, again).empty()) << written;
  }
}

TEST(HfFamilies, AScaleIsWholeInTransformers) {
  ModelConfig model =
      parse({{"model_type", "\"gemma2\""}, {"hidden_act", ""}, {"mlp_bias", ""}}).model;
  model.query_pre_attn_scalar = 12;
  EXPECT_TRUE(nlohmann::json::parse(hf_config_text(model, {"", "float32", 0}))
                  .at("query_pre_attn_scalar")
                  .is_number_integer());
  model.query_pre_attn_scalar = 12.5;
  expect_error(ExitCode::config, "has a whole number there", [&] {
    hf_config_text(model, {"", "float32", 0});
  });
}

TEST(HfFamilies, DefaultsOfTheClass) {
  const HfConfig mistral = parse({{"model_type", "\"mistral\""},
                                  {"num_attention_heads", "8"},
                                  {"num_key_value_heads", ""},
                                  {"mlp_bias", ""}});
  EXPECT_EQ(mistral.model.num_key_value_heads, 8);
  EXPECT_EQ(mistral.model.sliding_window, 4096);
}

// transformers' Phi-3 has no other types, and takes yarn for longrope.
TEST(HfFamilies, APhi3IsWrittenWithLongropeOnly) {
  ModelConfig model = parse({{"model_type", "\"phi3\""}, {"mlp_bias", ""}}).model;
  const HfExport exported{llama_config({{"model_type", "\"phi3\""}}), "float32", 0};
  EXPECT_EQ(nlohmann::json::parse(hf_config_text(model, exported)).at("rope_scaling"), nullptr);
  EXPECT_EQ(nlohmann::json::parse(hf_config_text(model, {"", "float32", 0})).at("rope_scaling"),
            nullptr);
  for (const char* const type : {"linear", "dynamic", "yarn"}) {
    model.rope_scaling.rope_type = type;
    model.rope_scaling.factor = 4;
    if (std::string(type) == "yarn") model.rope_scaling.beta_fast = 16;
    expect_error(ExitCode::config, "of transformers has longrope or default only",
                 [&] { hf_config_text(model, exported); });
  }
  model.rope_scaling = {};
  model.rope_scaling.rope_type = "longrope";
  model.rope_scaling.short_factor = {1, 2};
  model.rope_scaling.long_factor = {2, 4};
  const auto written = nlohmann::json::parse(hf_config_text(model, exported));
  EXPECT_EQ(written.at("rope_scaling").size(), 3u);
  EXPECT_EQ(written.at("rope_scaling").at("type"), "longrope");
}

TEST(HfFamilies, WhatCannotBeHadIsRefused) {
  expect_error(ExitCode::config, "there is no such key of llama", [] {
    parse({{"rope_scaling", R"({"rope_type": "linear", "factor": 2, "colour": 1})"}});
  });
  for (const char* const type : {"linear", "dynamic", "yarn"}) {
    SCOPED_TRACE(type);
    const std::string table = std::string(R"({"factor": 2, "type": ")") + type + "\"}";
    expect_error(ExitCode::config, "of transformers has longrope or default only", [&] {
      parse({{"model_type", "\"phi3\""}, {"mlp_bias", ""}, {"rope_scaling", table}});
    });
  }
  expect_error(ExitCode::config, "does not read it", [] {
    parse({{"model_type", "\"mistral\""},
           {"mlp_bias", ""},
           {"layer_types", R"(["full_attention", "full_attention"])"}});
  });
  expect_error(ExitCode::config, "transformers ignores these of a gemma3_text", [] {
    parse({{"model_type", "\"gemma3_text\""},
           {"hidden_act", ""},
           {"mlp_bias", ""},
           {"rope_parameters", R"({"rope_type": "default", "rope_theta": 7000.0})"}});
  });
  expect_error(ExitCode::config, "experts, which are not built", [] {
    parse({{"model_type", "\"gpt_oss\""}});
  });
}

}  // namespace
}  // namespace longhaul::launch
