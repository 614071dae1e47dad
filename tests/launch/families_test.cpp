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
  refused(
      "model.architecture = \"qwen3\": expected one of \"llama\", \"qwen3_next\", \"qwen3_5\", ",
      family_lines("llama"), {"model.architecture=qwen3"});
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
