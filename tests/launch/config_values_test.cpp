// What a configuration's values become: overrides, paths, grids, and the texts they are kept as.

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "launch/config.h"
#include "tests/support/config_test.h"

namespace longhaul::launch {
namespace {

using runtime::DType;
using runtime::Error;
using runtime::ExitCode;
using runtime::GridShape;
using ConfigValues = test::ConfigTest;

TEST_F(ConfigValues, OverridesWin) {
  const TrainConfig config =
      load({{14, "steps = -1"}},
           {"training.steps=5", "lr_scheduler.warmup_steps=1", "job.output_dir=runs/2026",
            "optimizer.lr=1", "debug.deterministic=true", "training.dtype=bfloat16",
            "checkpoint.resume=3", "model.vocab_size=300", "checkpoint.folder=2026",
            "training.steps=7"});
  EXPECT_EQ(config.training.steps, 7);
  EXPECT_EQ(config.job.output_dir, "runs/2026");
  EXPECT_EQ(config.checkpoint.folder, "2026");
  EXPECT_EQ(config.optimizer.lr, 1.0);
  EXPECT_TRUE(config.debug.deterministic);
  EXPECT_EQ(config.training.dtype, DType::bfloat16);
  EXPECT_EQ(config.checkpoint.resume, (runtime::WordOrInteger{"", 3}));
  EXPECT_EQ(config.model.vocab_size, 300);
  EXPECT_EQ(load({}, {"job.output_dir=\"a \\\"b\\\"\""}).job.output_dir, "a \"b\"");
}

TEST_F(ConfigValues, WrongOverridesNameThemselves) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"training.steps", "expected section.key=value"},
      {"steps=3", "expected section.key=value"},
      {"=", "expected section.key=value"},
      {"training.steps=", "no value"},
      {"training.steps=1\nseq_len=2", "got a string"},
      {"training.steps=[1", "got a string"},
      {"training.steps=99999999999999999999",
       "'99999999999999999999' is not representable in 64 bits"},
      {"training.steps=-9223372036854775809", "is not representable in 64 bits"},
      {"training.steps=0x1ffffffffffffffff", "is not representable in 64 bits"},
      {"training.max_norm=1e999", "'1e999' is not representable in 64 bits"},
      {"optimizer.lr=-1e400", "is not representable in 64 bits"},
      {"checkpoint.resume=99999999999999999999", "is not representable in 64 bits"},
      {"model.vocab_size=99999999999999999999", "is not representable in 64 bits"},
      {"model.layer_types=[99999999999999999999]", "is not representable in 64 bits"},
      {"parallelism.context_parallel_scheme=double_ring(outer=99999999999999999999)",
       "character 19: '99999999999999999999' is not representable in 64 bits"},
      {"parallelism.context_parallel_switch=99999999999999999999:burst",
       "the step is not representable in 64 bits"},
      {"parallelism.context_parallel_scheme=atuo", "did you mean 'auto'?"},
      {"parallelism.context_parallel_scheme=zzzzzzzz", "group_cast, disaggregated or auto"},
      {"parallelism.context_parallel_scheme=auto(x=1)",
       "unknown scheme 'auto': it is a policy, which stands alone; expected ring, "},
      {"parallelism.context_parallel_scheme=Deepspeed-Ulysses", "here it is called 'ulysses'"},
      {"parallelism.context_parallel_scheme=zigzag",
       "here it is called 'ring': with context_parallel_layout = \"zigzag\""},
      {"parallelism.context_parallel_scheme=usp(around=zigzag)", "here it is called 'ring'"},
      {"parallelism.context_parallel_switch=5:a2a", "here it is called 'ulysses'"},
      {"job.output_dir=$LONGHAUL_TEST_NO_SUCH/x",
       "the environment variable LONGHAUL_TEST_NO_SUCH is not set"},
      {"checkpoint.folder=~nobody/x", "the home of another user (~nobody) is not looked up"},
      {"training.steps=1 # a comment\n", "got a string"},
      {"trainin.steps=1", "unknown section [trainin]; did you mean [training]?"},
      {"data.mask=ful", "did you mean \"full\"?"},
      {"data.mask=slices", "`longhaul attention`"},
      {"data.block=8", "does not use it"},
  };
  for (const auto& [text, part] : cases) {
    const auto found = problems({}, {text});
    ASSERT_FALSE(found.empty()) << text;
    EXPECT_TRUE(found[0].starts_with("--set " + text.substr(0, text.find('\n')))) << found[0];
    std::string all;
    for (const std::string& line : found) all += line + "\n";
    EXPECT_NE(all.find(part), std::string::npos) << all;
  }
}

TEST_F(ConfigValues, PathsAreExpanded) {
  const std::string home = std::getenv("HOME") != nullptr ? std::getenv("HOME") : "";
  ASSERT_FALSE(home.empty());
  const TrainConfig config =
      load({{2, "output_dir = \"~/runs/$$a\""}}, {"checkpoint.folder=${HOME}/saved"});
  EXPECT_EQ(config.job.output_dir, home + "/runs/$a");
  EXPECT_EQ(config.checkpoint.folder, home + "/saved");
  EXPECT_NE(to_toml(config).find("folder = \"" + home + "/saved\""), std::string::npos);
  // What is stored loads to the same.
  TrainDraft stored("stored.toml");
  runtime::read_config_text(stored, to_toml(config));
  stored.check();
  EXPECT_EQ(stored.config.job.output_dir, config.job.output_dir);
  EXPECT_EQ(to_toml(stored.config), to_toml(config));
}

TEST_F(ConfigValues, ResolvedTextRoundTrips) {
  const TrainConfig config =
      load({}, {"optimizer.lr=0.1234567890123456", "model.rope_theta=500000", "checkpoint.resume=7",
                "model.vocab_size=257", "checkpoint.folder=\"a\\t\\\"q\\\"\\\\ \\u00e9\"",
                "comm.timeout_seconds=1e-5"});
  const std::string text = to_toml(config);
  const TrainConfig again = load_config(folder_.write("again.toml", text), {}).config;
  EXPECT_EQ(to_toml(again), text);
  EXPECT_EQ(digest(again), digest(config));
  EXPECT_EQ(again.optimizer.lr, 0.1234567890123456);
  EXPECT_EQ(again.checkpoint.folder, config.checkpoint.folder);
  EXPECT_EQ(again.model.vocab_size, 257);
  for (const char* other :
       {"debug.seed=2", "training.dtype=bfloat16", "optimizer.lr=0.1234567890123457"}) {
    EXPECT_NE(digest(load({}, {other})), digest(load())) << other;
  }
}

TEST_F(ConfigValues, JsonHoldsEveryKey) {
  const auto json = nlohmann::json::parse(to_json(load()));
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    std::string place = "/" + key.path();
    std::ranges::replace(place, '.', '/');
    EXPECT_TRUE(json.contains(nlohmann::json::json_pointer(place))) << key.path();
  }
  EXPECT_EQ(json["training"]["seq_len"], 4096);
  EXPECT_EQ(json["checkpoint"]["resume"], "auto");
}

TEST_F(ConfigValues, GridTakesWhatIsLeft) {
  TrainConfig config = load({}, {"parallelism.context_parallel_degree=-1"});
  EXPECT_EQ(resolve_grid(config, 7), (GridShape{1, 7, 1, 1}));
  config.parallelism.data_parallel_replicate_degree = 3;
  EXPECT_EQ(resolve_grid(config, 6), (GridShape{3, 2, 1, 1}));
  try {
    resolve_grid(config, 7);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::launch);
    EXPECT_NE(std::string(error.what()).find("multiple of 3"), std::string::npos) << error.what();
  }
  EXPECT_EQ(load({{18, "context_parallel_degree = -1"}}, {}, 5).parallelism.context_parallel_degree,
            5);
  EXPECT_EQ(load({{18, "context_parallel_degree = -1"}}).parallelism.context_parallel_degree, -1);
}

TEST(ConfigSchema, EveryKeyIsExplainedOnce) {
  std::set<std::string> seen;
  const std::string reference = config_reference();
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    EXPECT_TRUE(seen.insert(key.path()).second) << key.path();
    EXPECT_TRUE(key.explanation.ends_with(".")) << key.path();
    EXPECT_NE(reference.find("`" + std::string(key.name) + "`"), std::string::npos);
    const std::string in_cell = std::regex_replace(key.explanation, std::regex("\\|"), "\\|");
    EXPECT_NE(reference.find(in_cell), std::string::npos) << in_cell;
  }
}

}  // namespace
}  // namespace longhaul::launch
