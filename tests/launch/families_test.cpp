// What a configuration may say of each family of models.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/config.h"
#include "launch/config_changes.h"
#include "launch/model.h"
#include "launch/model_keys.h"
#include "models/family.h"
#include "tests/support/expect_error.h"
#include "tests/support/family_configs.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;
using test::family_lines;
using test::ModelLines;

constexpr const char* kRest = R"([job]
output_dir = "out"
[data]
corpus = "c.h5"
[training]
seq_len = 128
tokens_per_step = 512
steps = 12
[parallelism]
context_parallel_degree = 1
)";

TrainConfig load(const ModelLines& lines, const std::vector<std::string>& sets = {}) {
  const test::TempDirectory folder;
  const std::string path = folder.write("run.toml", kRest + test::model_section(lines));
  return load_config(path, sets, std::nullopt, NamedFiles::unread).config;
}

void refused(const std::string& message, const ModelLines& lines,
             const std::vector<std::string>& sets = {}) {
  test::expect_error(ExitCode::config, message, [&] { load(lines, sets); });
}

class EveryFamily : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Families, EveryFamily, testing::ValuesIn(models::family_names()),
                         [](const auto& info) { return info.param; });

TEST_P(EveryFamily, LoadsAndItsResolvedTextLoadsToTheSame) {
  const TrainConfig config = load(family_lines(GetParam()));
  EXPECT_EQ(config.model.architecture, GetParam());
  const test::TempDirectory folder;
  const std::string text = to_toml(config);
  const TrainConfig again =
      load_config(folder.write("resolved.toml", text), {}, std::nullopt, NamedFiles::unread).config;
  EXPECT_EQ(to_toml(again), text);
  EXPECT_EQ(nlohmann::json::parse(to_json(config)).at("model").at("hidden_size"), 32);
}

TEST_P(EveryFamily, ItsModelHasTheLayersThatItSays) {
  const TrainConfig config = load(family_lines(GetParam()));
  const auto& family = models::family_of(GetParam());
  const std::vector<std::string> layers = family.layers(config.model);
  ASSERT_EQ(layers.size(), 2u);
  for (const std::string& layer : layers)
    EXPECT_EQ(std::ranges::count(family.layer_words, layer), 1) << layer;
}

TEST_P(EveryFamily, EachRequiredKeyIsMissedByName) {
  models::ModelConfig none;
  models::FamilyKeys keys;
  models::family_of(GetParam()).keys(none, keys);
  int required = 0;
  for (const models::FamilyKeys::Key& key : keys.keys()) {
    if (!key.required) continue;
    ++required;
    ModelLines lines = family_lines(GetParam());
    ASSERT_EQ(lines.erase(key.name), 1u) << key.name;
    refused("missing key '" + key.name.substr(key.name.rfind('.') + 1) + "' in [model", lines);
  }
  EXPECT_GE(required, 2);
}

TEST_P(EveryFamily, KeysOfOthersAreOfNoUse) {
  const ModelLines own = family_lines(GetParam());
  int tried = 0;
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    const std::vector<std::string> users = families_of_key(key);
    if (users.empty() || std::ranges::count(users, GetParam()) != 0) continue;
    const std::string name = key.path().substr(std::string("model.").size());
    const ModelLines theirs = family_lines(users.front());
    const auto line = theirs.find(name);
    if (line == theirs.end()) continue;
    ++tried;
    ModelLines lines = own;
    lines[name] = line->second;
    refused(
        fmt::format("architecture = \"{}\" has no use for it, only {}", GetParam(), users.front()),
        lines);
  }
  EXPECT_GE(tried, 5);
}

TEST(Families, UnknownOnesAndWordsListWhatThereIs) {
  refused("model.architecture = \"falcon\": expected one of \"llama\", \"mistral\", \"qwen2\", ",
          family_lines("llama"), {"model.architecture=falcon"});
  refused(
      "model.layer_types[0] = \"mamba2\": expected one of \"mamba\", \"attention\"; did you mean "
      "\"mamba\"?",
      family_lines("granitemoehybrid"), {"model.layer_types=[\"mamba2\", \"attention\"]"});
  refused(
      "model.layer_types[1] = \"mamba\": expected one of \"full_attention\", "
      "\"linear_attention\"",
      family_lines("minimax"), {"model.layer_types=[\"full_attention\", \"mamba\"]"});
}

TEST(Families, WhatIsNotBuiltIsRefusedByName) {
  refused(
      "model.mlp_only_layers = [1]: layer 0 is not in it and would have experts, which are not "
      "built; expected all layers from 0 to 1",
      family_lines("qwen3_next"), {"model.mlp_only_layers=[1]"});
  refused("model.num_local_experts = 8: experts are not built; expected 0",
          family_lines("granitemoehybrid"), {"model.num_local_experts=8"});
  refused("model.num_local_experts = 2: experts are not built; expected 1", family_lines("minimax"),
          {"model.num_local_experts=2"});
  refused("model.hybrid_override_pattern = \"ME\": letter 1 is 'E', experts, which are not built",
          family_lines("nemotron_h"), {"model.hybrid_override_pattern=ME"});
  refused("model.first_k_dense_replace = 1: experts, of later layers, are not built",
          family_lines("kimi_linear"), {"model.first_k_dense_replace=1"});
  refused(
      "model.linear_attn_config.kda_layers = [1]: expected every layer from 1 to "
      "num_hidden_layers = 2, once: latent attention",
      family_lines("kimi_linear"), {"model.linear_attn_config.kda_layers=[1]"});
  refused("model.linear_attn_config.full_attn_layers = [2]: latent attention is not built",
          family_lines("kimi_linear"), {"model.linear_attn_config.full_attn_layers=[2]"});
}

TEST(Families, ThoseThatAreNotBuiltAreRefusedWithTheReason) {
  const auto with = [](const std::string& message, const std::string& architecture) {
    refused("model.architecture = \"" + architecture + "\": " + message, family_lines("llama"),
            {"model.architecture=" + architecture});
  };
  with("its layers have experts, which are not built; its attention's options are `llama`'s",
       "gpt_oss");
  with("its layers have experts, which are not built; expected one of \"llama\"", "mixtral");
  with("it reads images as well as text; the text model alone is `gemma3_text`", "gemma3");
  with("here it is called \"qwen2\"", "Qwen2ForCausalLM");
}

/// As full_attention f and sliding_attention s.
std::string layers_of(const std::string& family, const std::vector<std::string>& sets) {
  ModelLines lines = family_lines(family);
  for (const char* key :
       {"sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern"})
    lines.erase(key);
  std::vector<std::string> all = {"model.num_hidden_layers=7"};
  for (const std::string& set : sets) all.push_back("model." + set);
  const TrainConfig config = load(lines, all);
  std::string letters;
  for (const std::string& word : models::family_of(family).layers(config.model))
    letters += word.front();
  return letters;
}

TEST(Families, LayersThatSlideFollowTheirPattern) {
  const std::string types =
      "layer_types=[\"full_attention\", \"sliding_attention\", \"full_attention\", "
      "\"full_attention\", \"full_attention\", \"full_attention\", \"full_attention\"]";
  EXPECT_EQ(layers_of("mistral", {}), "fffffff");
  EXPECT_EQ(layers_of("mistral", {"sliding_window=4"}), "sssssss");
  EXPECT_EQ(layers_of("phi3", {}), "fffffff");
  EXPECT_EQ(layers_of("phi3", {"sliding_window=4"}), "sssssss");
  for (const char* qwen : {"qwen2", "qwen3"}) {
    EXPECT_EQ(layers_of(qwen, {}), "fffffff");
    EXPECT_EQ(layers_of(qwen, {"sliding_window=4", "max_window_layers=2"}), "fffffff");
    EXPECT_EQ(layers_of(qwen, {"use_sliding_window=true"}), "fffffff") << "from layer 28 on";
    EXPECT_EQ(layers_of(qwen, {"use_sliding_window=true", "max_window_layers=2"}), "ffsssss");
    EXPECT_EQ(layers_of(qwen, {"use_sliding_window=true", "max_window_layers=2", types}),
              "fsfffff");
  }
  EXPECT_EQ(layers_of("gemma2", {}), "sfsfsfs");
  EXPECT_EQ(layers_of("gemma2", {types}), "fsfffff");
  EXPECT_EQ(layers_of("gemma3_text", {}), "sssssfs");
  EXPECT_EQ(layers_of("gemma3_text", {"sliding_window_pattern=3"}), "ssfssfs");
  EXPECT_EQ(layers_of("gemma3_text", {"sliding_window_pattern=3", types}), "fsfffff");
  EXPECT_EQ(layers_of("olmo2", {}), "fffffff");
  refused(
      "model.layer_types = [\"full_attention\", \"sliding_attention\"]: "
      "\"sliding_attention\" needs model.use_sliding_window = true",
      [] {
        ModelLines lines = family_lines("qwen3");
        lines.erase("use_sliding_window");
        return lines;
      }(),
      {"model.layer_types=[\"full_attention\", \"sliding_attention\"]"});
}

TEST(Families, LayersThatSlideNeedACausalMask) {
  refused(
      "model.sliding_window = 8: \"sliding_attention\" needs a causal mask, and with data.mask "
      "= \"full\" queries see later keys; use one of the masks ",
      family_lines("mistral"), {"data.mask=full"});
  refused("model.sliding_window = 4096: \"sliding_attention\" needs a causal mask",
          [] {
            ModelLines lines = family_lines("gemma2");
            lines.erase("sliding_window");
            return lines;
          }(),
          {"data.mask=full"});
  ModelLines idle = family_lines("qwen2");
  idle.erase("use_sliding_window");
  EXPECT_EQ(load(idle, {"data.mask=full"}).data.mask, "full");
}

TEST(Families, DefaultsAreThoseOfTransformersClasses) {
  const auto bare = [](const std::string& family) {
    ModelLines lines = {{"architecture", "\"" + family + "\""},
                        {"hidden_size", "64"},
                        {"intermediate_size", "64"},
                        {"num_hidden_layers", "2"},
                        {"num_attention_heads", "32"}};
    return load(lines).model;
  };
  struct Defaults {
    const char* family;
    std::int64_t kv_heads, head_dim;
    double eps, theta;
    bool tied;
  };
  for (const Defaults& d :
       {Defaults{"llama", 32, 2, 1e-6, 1e4, false}, Defaults{"mistral", 8, 2, 1e-6, 1e4, false},
        Defaults{"qwen2", 32, 2, 1e-6, 1e4, false}, Defaults{"qwen3", 32, 128, 1e-6, 1e4, false},
        Defaults{"gemma2", 4, 256, 1e-6, 1e4, true},
        Defaults{"gemma3_text", 4, 256, 1e-6, 1e6, true}, Defaults{"phi3", 32, 2, 1e-5, 1e4, false},
        Defaults{"olmo2", 32, 2, 1e-5, 1e4, false}}) {
    const models::ModelConfig model = bare(d.family);
    EXPECT_EQ(model.num_key_value_heads, d.kv_heads) << d.family;
    EXPECT_EQ(model.head_dim, d.head_dim) << d.family;
    EXPECT_EQ(model.rms_norm_eps, d.eps) << d.family;
    EXPECT_EQ(model.rope_theta, d.theta) << d.family;
    EXPECT_EQ(model.tie_word_embeddings, d.tied) << d.family;
  }
  EXPECT_EQ(bare("gemma2").attn_logit_softcapping, 50);
  EXPECT_EQ(bare("gemma2").final_logit_softcapping, 30);
  EXPECT_EQ(bare("gemma3_text").final_logit_softcapping, 0);
  EXPECT_EQ(bare("gemma3_text").rope_local_base_freq, 1e4);
}

TEST(Families, OptionsOfAttentionGoTogether) {
  const ModelLines llama = family_lines("llama");
  const std::string sigmoid = "model.attention_weighting=sigmoid";
  EXPECT_EQ(load(llama, {sigmoid, "model.attention_sigmoid_bias=-4"}).model.attention_sigmoid_bias,
            -4);
  refused("model.attention_weighting = \"sigmoid\": it needs model.attention_sigmoid_bias", llama,
          {sigmoid});
  refused("model.attention_sigmoid_bias = -4: only attention_weighting = \"sigmoid\" has a use",
          llama, {"model.attention_sigmoid_bias=-4"});
  refused("model.attention_sinks = true: a sigmoid has no denominator for sinks", llama,
          {sigmoid, "model.attention_sigmoid_bias=-4", "model.attention_sinks=true"});
  refused("model.attn_logit_softcapping = -1: expected a number of at least 0", llama,
          {"model.attn_logit_softcapping=-1"});
}

TEST(RopeKeys, AreJudgedByType) {
  const auto with = [](const std::string& message, std::vector<std::string> sets,
                       const char* family = "llama") {
    for (std::string& set : sets) set = "model." + set;
    refused(message, family_lines(family), sets);
  };
  with("missing key 'factor' in [model.rope_scaling]", {"rope_scaling.rope_type=linear"});
  with("model.rope_scaling.factor = 2.0: it needs a rope_type beside it",
       {"rope_scaling.factor=2.0"});
  with("model.rope_scaling.beta_fast = 8.0: rope_type = \"linear\" has no use for it; leave it out",
       {"rope_scaling.rope_type=linear", "rope_scaling.factor=2.0", "rope_scaling.beta_fast=8.0"});
  with("model.rope_scaling.rope_type = \"ntk\": expected one of \"default\", \"linear\", ",
       {"rope_scaling.rope_type=ntk"});
  with("missing key 'max_position_embeddings' in [model]",
       {"rope_scaling.rope_type=dynamic", "rope_scaling.factor=2.0"});
  with(
      "model.rope_scaling.long_factor = [1.0, 2.0]: 2 numbers; expected 4, one for each pair of "
      "the "
      "8 dims that turn",
      {"rope_scaling.rope_type=longrope", "rope_scaling.short_factor=[1.0, 1.0, 1.0, 1.0]",
       "rope_scaling.long_factor=[1.0, 2.0]", "max_position_embeddings=64"},
      "phi3");
  with(
      "model.rope_scaling.original_max_position_embeddings = 16: original_max_position_embeddings "
      "= 32 says it; leave this one out",
      {"rope_scaling.rope_type=yarn", "rope_scaling.factor=2.0",
       "rope_scaling.original_max_position_embeddings=16"},
      "phi3");
  with(
      "model.rope_scaling.rope_type = \"linear\": position_embedding_type = \"nope\" turns nothing",
      {"rope_scaling.rope_type=linear"}, "granitemoehybrid");
  with("model.rope_scaling.rope_type = \"linear\": architecture = \"nemotron_h\" has no use for it",
       {"rope_scaling.rope_type=linear"}, "nemotron_h");
}

TEST(RopeKeys, ALengthThatIsFrozenIsSaid) {
  const std::vector<std::string> longrope = {
      "model.rope_scaling.rope_type=su", "model.rope_scaling.short_factor=[1.0, 1.0, 1.0, 1.0]",
      "model.rope_scaling.long_factor=[1.0, 2.0, 3.0, 4.0]", "model.max_position_embeddings=64"};
  const models::ModelConfig phi3 = load(family_lines("phi3"), longrope).model;
  EXPECT_EQ(phi3.rope_scaling.rope_type, "longrope");
  EXPECT_EQ(rope_text(phi3, 33),
            "longrope with long_factor, since training.seq_len = 33 is above the original length "
            "32, for all positions: another seq_len turns them otherwise");
  EXPECT_EQ(rope_text(phi3, 32).value_or("").substr(0, 60),
            "longrope with short_factor, since training.seq_len = 32 is a");
  const models::ModelConfig dynamic =
      load(family_lines("llama"),
           {"model.rope_scaling.rope_type=dynamic", "model.rope_scaling.factor=2",
            "model.max_position_embeddings=64"})
          .model;
  EXPECT_EQ(rope_text(dynamic, 128).value_or("").substr(0, 22), "dynamic, of 128 tokens");
  EXPECT_EQ(rope_text(dynamic, 16).value_or("").substr(0, 21), "dynamic, of 64 tokens");
  EXPECT_EQ(rope_text(load(family_lines("llama")).model, 128), std::nullopt);
}

TEST(Families, KeysOfWhatIsNotBuiltSaySo) {
  const auto with = [](const std::string& family, const std::string& key,
                       const std::string& value) {
    ModelLines lines = family_lines(family);
    lines[key] = value;
    return lines;
  };
  refused("unknown key 'kv_lora_rank' in [model]; latent attention is not supported",
          with("kimi_linear", "kv_lora_rank", "512"));
  refused("unknown key 'num_experts' in [model]; mixtures of experts are not supported",
          with("qwen3_next", "num_experts", "512"));
  refused("unknown key 'vision_config' in [model]; models of other than text are not supported",
          with("qwen3_5", "vision_config.depth", "27"));
}

TEST(Families, ATableInASectionIsReadFromHeaderLineAndOverride) {
  ModelLines lines = family_lines("kimi_linear");
  const TrainConfig by_header = load(lines, {"model.linear_attn_config.num_heads=3"});
  EXPECT_EQ(by_header.model.linear_attn_config.num_heads, 3);
  EXPECT_EQ(by_header.model.linear_attn_config.short_conv_kernel_size, 4);
  std::erase_if(lines, [](const auto& line) { return line.first.starts_with("linear_attn"); });
  lines["linear_attn_config"] = "{ kda_layers = [1, 2], num_heads = 3, head_dim = 8 }";
  EXPECT_EQ(to_toml(load(lines)), to_toml(by_header));
  EXPECT_EQ(nlohmann::json::parse(to_json(by_header))["model"]["linear_attn_config"]["head_dim"],
            8);

  lines["linear_attn_config"] = "{ kda_layers = [1, 2], num_head = 3, head_dim = 8 }";
  refused("unknown key 'num_head' in [model.linear_attn_config]; did you mean 'num_heads'?", lines);
  lines["linear_attn_config"] = "7";
  refused(
      "'model.linear_attn_config' is a section: expected [model.linear_attn_config] and its "
      "keys, got an integer",
      lines);
}

TEST(Families, LayersThatMeanTheSameAreNoChange) {
  const auto changed = [](const std::string& before, const std::string& now) {
    ModelLines lines = family_lines("qwen3_5");
    lines.erase("layer_types");
    lines["num_hidden_layers"] = "4";
    runtime::CheckpointMetadata metadata;
    metadata.step = 8;
    metadata.corpus_digest = "one";
    const auto sets = [](const std::string& set) {
      return set.empty() ? std::vector<std::string>() : std::vector<std::string>{"model." + set};
    };
    metadata.config = to_toml(load(lines, sets(before)));
    const TrainConfig config = load(lines, sets(now));
    return !compare_with_checkpoint(metadata, "step-8", {config, 256, "one"}).meaning.empty();
  };
  const std::string words =
      "layer_types=[\"linear_attention\", \"linear_attention\", \"linear_attention\", "
      "\"full_attention\"]";
  EXPECT_FALSE(changed("", "full_attention_interval=4"));
  EXPECT_FALSE(changed("full_attention_interval=4", words));
  EXPECT_FALSE(changed(words, ""));
  EXPECT_TRUE(changed(words, "full_attention_interval=2"));
  EXPECT_TRUE(changed("", "full_attention_interval=3"));
}

TEST(Families, TheSchemeOfLinearLayersIsForFamiliesThatHaveThem) {
  const std::vector<std::string> lasp = {"parallelism.context_parallel_linear_scheme=lasp"};
  refused(
      "parallelism.context_parallel_linear_scheme = \"lasp\": no layer of this llama is linear; "
      "leave it out",
      family_lines("llama"), lasp);
  runtime::CheckpointMetadata metadata;
  metadata.step = 8;
  metadata.corpus_digest = "one";
  metadata.config = to_toml(load(family_lines("qwen3_5")));
  const TrainConfig now = load(family_lines("qwen3_5"), lasp);
  const ConfigChanges changes = compare_with_checkpoint(metadata, "step-8", {now, 256, "one"});
  EXPECT_TRUE(changes.meaning.empty());
  ASSERT_EQ(changes.run.size(), 1u);
  EXPECT_EQ(changes.run[0].key, "parallelism.context_parallel_linear_scheme");
}

TEST(Families, LayersAreCountedInTheirWords) {
  EXPECT_EQ(layers_text(load(family_lines("granitemoehybrid")).model), "2: 1 mamba, 1 attention");
  ModelLines qwen = family_lines("qwen3_5");
  qwen.erase("layer_types");
  EXPECT_EQ(layers_text(load(qwen, {"model.num_hidden_layers=9"}).model),
            "9: 7 linear_attention, 2 full_attention");
}

TEST(LinearSchemes, AreRefusedWhereNoStateFollows) {
  const ModelLines lines = family_lines("qwen3_next");
  const auto with = [&](const std::string& message, const std::vector<std::string>& sets) {
    refused(message, lines, sets);
  };
  const std::string key = "parallelism.context_parallel_linear_scheme=";
  EXPECT_EQ(load(lines, {key + "all_scan(blocks=4)"}).parallelism.context_parallel_linear_scheme,
            "all_scan");
  with("data.mask = \"full\": a linear layer's state holds all earlier tokens of a document",
       {"data.mask=full"});
  with("data.mask = \"causal_window\": a linear layer's state",
       {"data.mask=causal_window", "data.window=8"});
  with("data.window = 8: a linear layer's state holds", {"data.window=8"});
  with("device.kind = \"cuda\": linear layers run on CPUs only, so far; expected cpu",
       {"device.kind=cuda"});
  with(
      "context_parallel_layout = \"striped\": a state goes through consecutive tokens, and a "
      "striped rank has none; use layout zigzag",
      {"parallelism.context_parallel_layout=striped"});
  with("scheme ring spreads softmax attention; expected lasp, lasp2, all_scan, exscan or auto",
       {key + "ring"});
  with("groups=3 of 2 key heads; use scheme lasp(groups=2)", {key + "lasp(groups=3)"});
  with("unknown scheme 'lasp3'", {key + "lasp3"});
  with("scheme lasp2 spreads recurrences (linear layers); expected ring",
       {"parallelism.context_parallel_scheme=lasp2"});
}

}  // namespace
}  // namespace longhaul::launch
