// What may differ between a checkpoint's configuration and the one that goes on from it.
#include "launch/config_changes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "launch/config.h"
#include "launch/model_keys.h"
#include "tests/support/expect_error.h"
#include "tests/support/family_configs.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using Keys = std::set<std::string>;

constexpr const char* kConfig = R"([job]
output_dir = "out"
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
[data]
corpus = "FOLDER/c.h5"
[training]
seq_len = 128
tokens_per_step = 512
steps = 12
[optimizer]
lr = 1e-3
[parallelism]
context_parallel_degree = 1
)";

/// Text with the test's folder in the place of FOLDER. The two corpora there are only looked for.
std::string in_folder(std::string text) {
  static const test::TempDirectory folder;
  folder.write("c.h5", "");
  folder.write("moved.h5", "");
  const auto at = text.find("FOLDER");
  return at == std::string::npos ? text : text.replace(at, 6, folder.path().string());
}

TrainConfig load(std::vector<std::string> sets = {}, const std::string& text = kConfig) {
  const test::TempDirectory folder;
  for (std::string& set : sets) set = in_folder(set);
  return load_config(folder.write("run.toml", in_folder(text)), sets).config;
}
/// With the lines of another family.
std::string text_of_family(const std::string& family) {
  std::string text = kConfig;
  const std::size_t begin = text.find("[model]"), end = text.find("[data]");
  return text.replace(begin, end - begin, test::model_section(test::family_lines(family)));
}

runtime::CheckpointMetadata checkpoint_of(const TrainConfig& config, std::int64_t step = 8) {
  runtime::CheckpointMetadata metadata;
  metadata.step = step;
  metadata.config = to_toml(config);
  metadata.corpus_digest = "one";
  return metadata;
}

ConfigChanges compare(const runtime::CheckpointMetadata& before, const TrainConfig& now,
                      std::int64_t vocab_size = 256) {
  return compare_with_checkpoint(before, "step-8", {now, vocab_size, "one"});
}

ConfigChanges changes(const std::vector<std::string>& before, const std::vector<std::string>& now) {
  return compare(checkpoint_of(load(before)), load(now));
}

Keys keys(const std::vector<KeyChange>& list) {
  Keys keys;
  for (const KeyChange& change : list) keys.insert(change.key);
  return keys;
}

/// Another value of every key that the small configuration can take alone, and others that it
/// needs.
const std::map<std::string, std::vector<std::string>> kOther = {
    {"job.output_dir", {"elsewhere"}},
    {"model.hidden_size", {"64"}},
    {"model.intermediate_size", {"48"}},
    {"model.num_hidden_layers", {"3"}},
    {"model.num_attention_heads", {"4", "model.num_key_value_heads=2", "model.head_dim=16"}},
    {"model.num_key_value_heads", {"1"}},
    {"model.head_dim", {"8"}},
    {"model.rms_norm_eps", {"1e-5"}},
    {"model.rope_theta", {"5e5"}},
    {"model.tie_word_embeddings", {"true"}},
    {"model.vocab_size", {"300"}},
    {"data.corpus", {"FOLDER/moved.h5"}},
    {"data.mask", {"full_document"}},
    {"data.positions", {"sequence"}},
    {"training.seq_len", {"64"}},
    {"training.micro_batch_size", {"2"}},
    {"training.tokens_per_step", {"256"}},
    {"training.interleave", {"2"}},
    {"training.steps", {"20"}},
    {"training.max_norm", {"2"}},
    {"training.dtype", {"bfloat16"}},
    {"optimizer.lr", {"5e-3"}},
    {"optimizer.beta1", {"0.8"}},
    {"optimizer.beta2", {"0.99"}},
    {"optimizer.eps", {"1e-7"}},
    {"optimizer.weight_decay", {"0"}},
    {"lr_scheduler.warmup_steps", {"3"}},
    {"lr_scheduler.min_lr_factor", {"0.5"}},
    {"parallelism.context_parallel_degree", {"3"}},
    {"parallelism.context_parallel_scheme", {"burst"}},
    {"parallelism.context_parallel_switch", {"5:burst"}},
    {"parallelism.context_parallel_layout", {"striped"}},
    {"parallelism.context_parallel_wire_dtype", {"bfloat16"}},
    {"parallelism.data_parallel_replicate_degree", {"2"}},
    {"parallelism.shard", {"optimizer"}},
    {"activation_checkpoint.mode", {"full"}},
    {"checkpoint.enable", {"false"}},
    {"checkpoint.folder", {"other"}},
    {"checkpoint.interval", {"7"}},
    {"checkpoint.keep_latest_k", {"0"}},
    {"checkpoint.resume", {"4"}},
    {"checkpoint.initial_load_path", {"FOLDER"}},
    {"validation.enable", {"true", "validation.corpus=FOLDER/moved.h5"}},
    {"validation.corpus", {"FOLDER/moved.h5"}},
    {"validation.freq", {"3"}},
    {"validation.steps", {"2"}},
    {"metrics.log_freq", {"10"}},
    {"comm.backend", {"loopback"}},
    {"comm.timeout_seconds", {"5"}},
    {"comm.nccl_max_ctas", {"4"}},
    {"comm.shared_memory", {"off"}},
    {"device.kind", {"cuda"}},
    {"device.attention", {"exact"}},
    {"device.share", {"true"}},
    {"debug.seed", {"2"}},
    {"debug.deterministic", {"true"}},
    {"debug.threads", {"3"}},
};
/// The same of keys of some families, in the first of them; all are meaning.
const std::map<std::string, std::string> kOtherOfFamilies = {
    {"model.max_position_embeddings", "4096"},
    {"model.original_max_position_embeddings", "64"},
    {"model.rope_local_base_freq", "5e3"},
    {"model.attention_bias", "true"},
    {"model.mlp_bias", "true"},
    {"model.query_pre_attn_scalar", "64"},
    {"model.attn_logit_softcapping", "20"},
    {"model.final_logit_softcapping", "20"},
    {"model.attention_sinks", "true"},
    {"model.partial_rotary_factor", "0.25"},
    {"model.linear_num_key_heads", "1"},
    {"model.linear_num_value_heads", "8"},
    {"model.linear_key_head_dim", "4"},
    {"model.linear_value_head_dim", "4"},
    {"model.linear_conv_kernel_dim", "3"},
    {"model.shared_intermediate_size", "32"},
    {"model.position_embedding_type", "rope"},
    {"model.embedding_multiplier", "2"},
    {"model.residual_multiplier", "0.5"},
    {"model.attention_multiplier", "0.5"},
    {"model.logits_scaling", "2"},
    {"model.mamba_d_state", "4"},
    {"model.mamba_n_groups", "2"},
    {"model.mamba_d_conv", "3"},
    {"model.mamba_conv_bias", "false"},
    {"model.time_step_limit", "[0.0, 1.0]"},
    {"model.hybrid_override_pattern", "*M"},
    {"model.layer_norm_epsilon", "1e-6"},
    {"model.mamba_num_heads", "4"},
    {"model.mamba_head_dim", "4"},
    {"model.ssm_state_size", "4"},
    {"model.n_groups", "2"},
    {"model.conv_kernel", "3"},
    {"model.use_conv_bias", "false"},
    {"model.full_attn_alpha_factor", "2"},
    {"model.full_attn_beta_factor", "2"},
    {"model.linear_attn_alpha_factor", "2"},
    {"model.linear_attn_beta_factor", "2"},
    {"model.mlp_alpha_factor", "2"},
    {"model.mlp_beta_factor", "2"},
    {"model.linear_attention", "gla"},
    {"model.feature_map", "relu"},
    {"model.normalize", "true"},
    {"model.first_k_dense_replace", "3"},
    {"model.linear_attn_config.num_heads", "4"},
    {"model.linear_attn_config.head_dim", "4"},
    {"model.linear_attn_config.short_conv_kernel_size", "3"},
};
/// Keys with a single value so far, or that go with others, or with a mask or layers of their own
/// (below, and families_test.cpp).
const Keys kNotAlone = {"data.corpora",
                        "model.architecture",
                        "parallelism.context_parallel_linear_scheme",
                        "model.layer_types",
                        "model.sliding_window",
                        "model.full_attention_interval",
                        "model.attention_weighting",
                        "model.attention_sigmoid_bias",
                        "model.use_sliding_window",
                        "model.max_window_layers",
                        "model.sliding_window_pattern",
                        "model.rope_scaling.rope_type",
                        "model.rope_scaling.factor",
                        "model.rope_scaling.original_max_position_embeddings",
                        "model.rope_scaling.low_freq_factor",
                        "model.rope_scaling.high_freq_factor",
                        "model.rope_scaling.beta_fast",
                        "model.rope_scaling.beta_slow",
                        "model.rope_scaling.mscale",
                        "model.rope_scaling.mscale_all_dim",
                        "model.rope_scaling.truncate",
                        "model.rope_scaling.attention_factor",
                        "model.rope_scaling.short_factor",
                        "model.rope_scaling.long_factor",
                        "model.mlp_only_layers",
                        "model.num_local_experts",
                        "model.mamba_n_heads",
                        "model.mamba_d_head",
                        "model.mamba_expand",
                        "model.linear_attn_config.kda_layers",
                        "model.linear_attn_config.full_attn_layers",
                        "data.window",
                        "data.prefix",
                        "data.global",
                        "data.block",
                        "optimizer.name",
                        "lr_scheduler.decay_type",
                        "parallelism.tensor_parallel_degree",
                        "parallelism.pipeline_parallel_degree",
                        "attention_servers.mode",
                        "attention_servers.count",
                        "attention_servers.addresses",
                        "attention_servers.token_file",
                        "attention_servers.timeout_seconds",
                        "attention_servers.buffer_bytes",
                        "attention_servers.measure_speeds",
                        "debug.pretend"};
const Keys kMeaning = {"model.hidden_size",
                       "model.intermediate_size",
                       "model.num_hidden_layers",
                       "model.num_attention_heads",
                       "model.num_key_value_heads",
                       "model.head_dim",
                       "model.rms_norm_eps",
                       "model.rope_theta",
                       "model.tie_word_embeddings",
                       "model.vocab_size",
                       "data.mask",
                       "data.positions",
                       "training.seq_len",
                       "debug.seed"};
const Keys kFree = {"job.output_dir",     "checkpoint.folder",
                    "checkpoint.resume",  "checkpoint.initial_load_path",
                    "metrics.log_freq",   "comm.timeout_seconds",
                    "comm.nccl_max_ctas", "comm.shared_memory",
                    "device.share",       "debug.deterministic",
                    "debug.threads"};

TEST(ConfigChanges, EveryKeyIsRefusedToldOrFree) {
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    const std::string path = key.path();
    SCOPED_TRACE(path);
    if (kNotAlone.contains(path)) continue;
    if (const auto other = kOtherOfFamilies.find(path); other != kOtherOfFamilies.end()) {
      const std::string text = text_of_family(families_of_key(key).front());
      const ConfigChanges found =
          compare(checkpoint_of(load({}, text)), load({path + "=" + other->second}, text));
      EXPECT_EQ(keys(found.meaning), Keys{path});
      EXPECT_TRUE(found.run.empty());
      continue;
    }
    ASSERT_TRUE(kOther.contains(path)) << "a new key: say here whether it may change";
    const std::vector<std::string>& other = kOther.at(path);
    std::vector<std::string> sets = {path + "=" + other.front()};
    sets.insert(sets.end(), other.begin() + 1, other.end());
    if (path == "model.hidden_size") sets.emplace_back("model.head_dim=16");
    const ConfigChanges found = changes({}, sets);
    const Keys meaning = keys(found.meaning), run = keys(found.run);
    EXPECT_EQ(meaning.contains(path), kMeaning.contains(path));
    EXPECT_EQ(run.contains(path), !kMeaning.contains(path) && !kFree.contains(path));
    const std::size_t others = path == "validation.enable" ? 1 : 0;  // its corpus
    EXPECT_LE(meaning.size() + run.size(), 1 + others) << "only what was changed";
  }
}

TEST(ConfigChanges, AttentionServersMayChangeAndWhereTheyAreIsNotTold) {
  const auto with = [](const std::vector<std::string>& sets) {
    std::vector<std::string> all = {"parallelism.context_parallel_scheme=disaggregated"};
    for (const std::string& set : sets) all.push_back("attention_servers." + set);
    return all;
  };
  const auto told = [&](const std::vector<std::string>& before,
                        const std::vector<std::string>& now) {
    const ConfigChanges found = changes(with(before), with(now));
    EXPECT_TRUE(found.meaning.empty());
    return keys(found.run);
  };
  const std::vector<std::string> dedicated = {"mode=dedicated", "count=1"};
  EXPECT_EQ(told({}, dedicated), (Keys{"attention_servers.mode", "attention_servers.count"}));
  EXPECT_EQ(told(dedicated, {"mode=dedicated", "count=2"}), Keys{"attention_servers.count"});
  EXPECT_EQ(told({}, {"buffer_bytes=1000000"}), Keys{"attention_servers.buffer_bytes"});
  EXPECT_EQ(told({}, {"measure_speeds=true"}), Keys{"attention_servers.measure_speeds"});
  EXPECT_EQ(told({"mode=external", "addresses=[\"unix:a\"]", "token_file=t"},
                 {"mode=external", "addresses=[\"tcp:h:1\", \"unix:b\"]", "token_file=u",
                  "timeout_seconds=3"}),
            Keys());
}

TEST(ConfigChanges, CorporaMayBeNamedOtherwiseAndMayNotBeOthers) {
  std::string text = kConfig;
  const std::string corpus = "corpus = \"FOLDER/c.h5\"";
  text.replace(text.find(corpus), corpus.size(),
               "corpora = [{path = \"FOLDER/c.h5\", weight = 2}]");
  const TrainConfig mixed = load({}, text);
  runtime::CheckpointMetadata before = checkpoint_of(load());
  EXPECT_EQ(keys(compare(before, mixed).run), (Keys{"data.corpus", "data.corpora"}));
  EXPECT_TRUE(compare(before, mixed).meaning.empty());
  before.corpus_digest = "two";
  const auto found = compare(before, mixed).meaning;
  ASSERT_EQ(keys(found), Keys{"data.corpora"});
  EXPECT_TRUE(found[0].before.ends_with("/c.h5\" of digest two")) << found[0].before;
  EXPECT_TRUE(found[0].now.ends_with("/c.h5\", weight = 2.0}] of digest one")) << found[0].now;
}

TEST(ConfigChanges, NumbersOfMasksAndTypesOfLayersAreMeaning) {
  const std::vector<std::string>
      window = {"data.mask=causal_window", "data.window=9"},
      sliding = {"model.layer_types=[\"sliding_attention\", \"full_attention\"]",
                 "model.sliding_window=9"};
  EXPECT_EQ(keys(changes(window, {window[0], "data.window=8"}).meaning), Keys{"data.window"});
  // Positions follow a mask that crosses documents.
  EXPECT_EQ(keys(changes({}, window).meaning),
            (Keys{"data.mask", "data.positions", "data.window"}));
  EXPECT_EQ(keys(changes({"data.mask=prefix_document", "data.prefix=3"},
                         {"data.mask=prefix_document", "data.prefix=4"})
                     .meaning),
            Keys{"data.prefix"});
  EXPECT_EQ(keys(changes({"data.mask=global_window", "data.window=5", "data.global=3"},
                         {"data.mask=global_window", "data.window=5", "data.global=4"})
                     .meaning),
            Keys{"data.global"});
  EXPECT_EQ(
      keys(changes({"data.mask=causal_blockwise"}, {"data.mask=causal_blockwise", "data.block=4"})
               .meaning),
      Keys{"data.block"});
  EXPECT_EQ(keys(changes(sliding, {sliding[0], "model.sliding_window=8"}).meaning),
            Keys{"model.sliding_window"});
  EXPECT_EQ(keys(changes({}, sliding).meaning),
            (Keys{"model.layer_types", "model.sliding_window"}));
}

TEST(ConfigChanges, HowPositionsAreStretchedIsMeaning) {
  const auto changed = [](const std::vector<std::string>& base, const std::string& other) {
    const auto sets = [](std::vector<std::string> lines) {
      for (std::string& line : lines) line = "model." + line;
      return lines;
    };
    std::vector<std::string> now = base;
    now.push_back(other);
    return keys(changes(sets(base), sets(now)).meaning);
  };
  const std::vector<std::string> yarn = {"rope_scaling.rope_type=yarn", "rope_scaling.factor=4",
                                         "max_position_embeddings=64"},
                                 llama3 = {"rope_scaling.rope_type=llama3", "rope_scaling.factor=4",
                                           "rope_scaling.low_freq_factor=1",
                                           "rope_scaling.high_freq_factor=4",
                                           "max_position_embeddings=64"};
  EXPECT_EQ(keys(changes({}, {"model.rope_scaling.rope_type=linear", "model.rope_scaling.factor=2"})
                     .meaning),
            (Keys{"model.rope_scaling.rope_type", "model.rope_scaling.factor"}));
  for (const char* other :
       {"factor=3", "original_max_position_embeddings=32", "beta_fast=20", "beta_slow=2",
        "mscale=0.5", "mscale_all_dim=0.25", "truncate=false", "attention_factor=1.5"}) {
    const std::string set = std::string("rope_scaling.") + other;
    EXPECT_EQ(changed(yarn, set), Keys{"model." + set.substr(0, set.find('='))});
  }
  EXPECT_EQ(changed(llama3, "rope_scaling.low_freq_factor=2"),
            Keys{"model.rope_scaling.low_freq_factor"});
  EXPECT_EQ(changed(llama3, "rope_scaling.high_freq_factor=5"),
            Keys{"model.rope_scaling.high_freq_factor"});
}

// The same keys that weights of another run may begin with (initial_weights_test.cpp).
TEST(ConfigChanges, AnEvaluationMayGoToAnotherLength) {
  const std::string phi3 = text_of_family("phi3"), gemma = text_of_family("gemma3_text");
  const auto evaluated = [](const std::string& text, const std::string& set) {
    return keys(
        require_same_model(checkpoint_of(load({}, text)), "step-8", {load({set}, text), 256, "one"})
            .run);
  };
  for (const char* const set : {"model.original_max_position_embeddings=64",
                                "model.max_position_embeddings=512", "model.rope_theta=5e5"}) {
    const std::string key = std::string(set).substr(0, std::string(set).find('='));
    EXPECT_EQ(evaluated(phi3, set), Keys{key});
  }
  EXPECT_EQ(evaluated(gemma, "model.rope_local_base_freq=5e3"), Keys{"model.rope_local_base_freq"});
  test::expect_error(runtime::ExitCode::config, "describes another model",
                     [&] { evaluated(phi3, "model.rms_norm_eps=1e-3"); });
}

TEST(ConfigChanges, WhatMeansTheSameIsNoChange) {
  const auto none = [](const std::vector<std::string>& before,
                       const std::vector<std::string>& now) {
    const ConfigChanges found = changes(before, now);
    EXPECT_TRUE(found.meaning.empty()) << found.meaning.front().key;
    EXPECT_TRUE(found.run.empty()) << found.run.front().key;
    EXPECT_TRUE(found.lines().empty());
  };
  none({}, {});
  none({}, {"data.mask=causal_document"});
  none({"data.mask=causal_document"}, {"data.mask=documents"});
  none({}, {"model.vocab_size=256"});
  none({"model.vocab_size=256"}, {});
  none({}, {"model.layer_types=[\"full_attention\", \"full_attention\"]"});
  none({}, {"model.head_dim=16", "model.num_key_value_heads=2"});
  none({"training.max_norm=1"}, {"training.max_norm=1.0"});
}

TEST(ConfigChanges, TheErrorNamesKeysBothValuesAndWhatToDo) {
  const TrainConfig now = load({"data.mask=causal", "model.rope_theta=5e4", "optimizer.lr=1"});
  const auto before = checkpoint_of(load());
  for (const std::string& part :
       {std::string("out/step-8: "),
        std::string("\n  data.mask = \"causal\": the checkpoint was made with "
                    "\"documents\"\n"),
        std::string("\n  model.rope_theta = 50000.0: the checkpoint was made with 10000.0\n"),
        std::string("checkpoint.resume = \"never\"")}) {
    test::expect_error(runtime::ExitCode::config, part, [&] {
      require_same_meaning(before, "out/step-8", {now, 256, "one"});
    });
  }
  test::expect_error(runtime::ExitCode::config, "c.h5\" of digest two", [&] {
    require_same_meaning(before, "out/step-8", {load(), 256, "two"});
  });
  EXPECT_EQ(
      keys(
          require_same_meaning(before, "out/step-8", {load({"training.steps=9"}), 256, "one"}).run),
      Keys{"training.steps"});
}

TEST(ConfigChanges, ALearningRateThatJumpsIsTold) {
  // Half a cosine from lr at step 0 to a tenth of it at step 12, at the ninth step.
  const auto rate = [](double lr, double steps) {
    return lr * (0.1 + 0.45 * (1 + std::cos(std::acos(-1.0) * 9 / steps)));
  };
  const ConfigChanges found = changes({}, {"optimizer.lr=5e-3"});
  EXPECT_EQ(found.next_step, 9);
  EXPECT_NEAR(found.rate_before, rate(1e-3, 12), 1e-12);
  EXPECT_NEAR(found.rate_now, rate(5e-3, 12), 1e-12);
  const std::vector<std::string> lines = found.lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0], "changed  optimizer.lr from 0.001 to 0.005");
  EXPECT_TRUE(lines[1].starts_with("changed  the learning rate of step 9 from 0.000")) << lines[1];
  // More steps stretch the schedule: the rate jumps though optimizer.lr has not changed.
  const ConfigChanges longer = changes({}, {"training.steps=100"});
  EXPECT_NEAR(longer.rate_now, rate(1e-3, 100), 1e-12);
  EXPECT_EQ(longer.lines().size(), 2u);
  EXPECT_EQ(changes({}, {"checkpoint.interval=7"}).lines().size(), 1u);
}

TEST(ConfigChanges, ACheckpointFromBeforePositionsStartedAgainInEveryDocument) {
  const auto older = [](const std::vector<std::string>& sets) {
    auto metadata = checkpoint_of(load(sets));
    const auto at = metadata.config.find("positions = ");
    EXPECT_NE(at, std::string::npos) << metadata.config;
    metadata.config.erase(at, metadata.config.find('\n', at) + 1 - at);
    return metadata;
  };
  const auto found = [&](const std::vector<std::string>& sets) {
    return compare(older(sets), load(sets)).meaning;
  };
  EXPECT_TRUE(found({}).empty());
  EXPECT_TRUE(found({"data.mask=prefix_document", "data.prefix=3"}).empty());
  // Where attention crosses documents it meant neither today's positions nor today's labels.
  for (const char* positions : {"auto", "document"}) {
    const auto meaning = found({"data.mask=causal", std::string("data.positions=") + positions});
    ASSERT_EQ(keys(meaning), Keys{"data.positions"}) << positions;
    EXPECT_TRUE(meaning[0].before.starts_with("\"document\"")) << meaning[0].before;
    EXPECT_TRUE(meaning[0].before.ends_with("before this key existed")) << meaning[0].before;
  }
  EXPECT_EQ(keys(compare(older({}), load({"data.positions=sequence"})).meaning),
            Keys{"data.positions"});
}

TEST(ConfigChanges, OlderAndForeignConfigurations) {
  const TrainConfig now = load({"parallelism.context_parallel_degree=4",
                                "parallelism.context_parallel_scheme=usp(heads=2)"});
  auto stored = checkpoint_of(now);
  const auto replace = [&](const std::string& from, const std::string& to) {
    auto changed = stored;
    const auto at = changed.config.find(from);
    EXPECT_NE(at, std::string::npos) << from << " is not in\n" << changed.config;
    changed.config.replace(at, from.size(), to);
    return changed;
  };
  // How schemes were written before they were expressions.
  EXPECT_TRUE(compare(replace("context_parallel_scheme = \"usp(heads=2)\"",
                              "context_parallel_scheme = \"usp\"\ncontext_parallel_degrees = "
                              "\"inner=2\""),
                      now)
                  .lines()
                  .empty());
  // A key that is newer than the checkpoint has its default.
  EXPECT_TRUE(compare(replace("shard = \"none\"\n", ""), now).lines().empty());
  const auto refused = [&](const runtime::CheckpointMetadata& metadata, const std::string& part) {
    test::expect_error(runtime::ExitCode::data, part, [&] { compare(metadata, now); });
  };
  refused(replace("hidden_size = 32\n", ""), "no model.hidden_size");
  refused(replace("hidden_size = 32\n", "hidden_size = \"32\"\n"), "no model.hidden_size");
  refused(replace("[data]\n", "[data]\nnoise = 3\n"), "does not know (data.noise)");
  refused(replace("[data]\n", "[data\n"), "no TOML");
  stored.config.clear();
  refused(stored, "no model.");
}

}  // namespace
}  // namespace longhaul::launch
