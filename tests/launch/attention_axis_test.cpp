// Which ranks attend together, what each takes of a step, and what is wrong with
// [attention_servers].
#include "launch/attention_axis.h"

#include <gtest/gtest.h>

#include <set>

#include "launch/config.h"
#include "launch/loader.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_directory.h"
#include "tests/support/training_run.h"

namespace longhaul::launch {
namespace {

using runtime::ExitCode;

constexpr std::int64_t kSeqLen = 31;

TrainConfig config_of(std::int64_t data, std::int64_t context, std::int64_t servers,
                      const std::string& scheme) {
  TrainConfig config = test::small_training(kSeqLen);
  config.parallelism.data_parallel_replicate_degree = data;
  config.parallelism.context_parallel_degree = context;
  config.parallelism.context_parallel_scheme = scheme;
  if (servers > 0) {
    config.attention_servers.mode = "dedicated";
    config.attention_servers.count = servers;
  }
  return config;
}

TEST(AttentionAxis, IsThatOfTheContextOrOfDataAndContext) {
  const AttentionAxis apart = attention_axis(config_of(2, 3, 0, "burst"));
  EXPECT_EQ(apart.world_size(), 6);
  EXPECT_EQ(apart.ranks(), 3);
  EXPECT_EQ(apart.group(4), 1);
  EXPECT_EQ(apart.rank(4), 1);
  EXPECT_FALSE(apart.serves(5));
  const AttentionAxis together = attention_axis(config_of(2, 3, 0, "disaggregated"));
  EXPECT_EQ(together.world_size(), 6);
  EXPECT_EQ(together.ranks(), 6);
  EXPECT_EQ(together.group(4), 0);
  EXPECT_EQ(together.rank(4), 4);
  const AttentionAxis served = attention_axis(config_of(2, 3, 2, "disaggregated(tolerance=0)"));
  EXPECT_EQ(served.world_size(), 8);
  EXPECT_EQ(served.homes, 6);
  EXPECT_FALSE(served.serves(5));
  EXPECT_TRUE(served.serves(6));
  EXPECT_EQ(served.servers.count, 2);
}

/// The rows of a step are those of the same sequences under any scheme and grid, each once.
TEST(AttentionAxis, AStepHasTheSameSequencesWhoeverAttends) {
  const auto source = std::make_shared<const test::RawSequences>(
      [](std::int64_t number) { return test::random_sequence(50, kSeqLen, number); });
  std::multiset<std::int32_t> expected;
  for (std::int64_t number = 4; number < 8; ++number) {
    for (const std::int32_t token : test::random_sequence(50, kSeqLen, number).tokens)
      expected.insert(token);
  }
  for (const char* scheme : {"ring", "disaggregated"}) {
    for (const std::int64_t servers : {0, 2}) {
      if (servers > 0 && scheme == std::string("ring")) continue;
      SCOPED_TRACE(runtime::concat(scheme, " with ", servers, " servers"));
      TrainConfig config = config_of(2, 3, servers, scheme);
      config.parallelism.context_parallel_layout = "packed";
      const AttentionAxis axis = attention_axis(config);
      std::multiset<std::int32_t> tokens;
      for (int rank = 0; rank < axis.world_size(); ++rank) {
        Loader loader({source, config, axis, axis.group(rank),
                       batch_shape(config, {{std::nullopt, 1}}, axis, axis.rank(rank))});
        for (const LocalBatch& batch : loader.take({2, 4})) {
          EXPECT_EQ(batch.layout.tokens(), axis.sequences * kSeqLen);
          EXPECT_EQ(batch.layout.ranks(), axis.ranks());
          EXPECT_EQ(batch.rows.tokens.empty(), axis.serves(rank));
          tokens.insert(batch.rows.tokens.begin(), batch.rows.tokens.end());
        }
      }
      EXPECT_EQ(tokens, expected);
    }
  }
}

// ---- configurations
// ------------------------------------------------------------------------------------------

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
[parallelism]
context_parallel_degree = 2
data_parallel_replicate_degree = 2
)";

TrainConfig load(const std::vector<std::string>& sets,
                 std::optional<std::int64_t> ranks = std::nullopt) {
  static const test::TempDirectory folder;
  folder.write("c.h5", "");
  std::string text = kConfig;
  text.replace(text.find("FOLDER"), 6, folder.path().string());
  return load_config(folder.write("run.toml", text), sets, ranks).config;
}

const std::string kScheme = "parallelism.context_parallel_scheme=disaggregated";
const std::string kDedicated = "attention_servers.mode=dedicated",
                  kExternal = "attention_servers.mode=external";

TEST(AttentionServersConfig, WhatIsWrongIsRefusedAtItsKey) {
  const struct {
    std::vector<std::string> sets;
    const char* message;
  } cases[] = {
      {{kDedicated, "attention_servers.count=1"}, "scheme ring has no attention servers"},
      {{"attention_servers.measure_speeds=true"}, "scheme ring has no attention servers"},
      {{"attention_servers.buffer_bytes=4096"}, "scheme ring has no attention servers"},
      {{kScheme, kDedicated}, "this needs attention_servers.count"},
      {{kScheme, kDedicated, "attention_servers.count=0"}, "at least 1"},
      {{kScheme, "attention_servers.count=2"}, "mode = \"in_place\" has no use for it"},
      {{kScheme, kDedicated, "attention_servers.count=1", "attention_servers.token_file=t"},
       "mode = \"dedicated\" has no use for it, only external"},
      {{kScheme, kDedicated, "attention_servers.count=1", "attention_servers.timeout_seconds=3"},
       "mode = \"dedicated\" has no use for it, only external"},
      {{kScheme, kExternal, "attention_servers.token_file=t"},
       "this needs attention_servers.addresses"},
      {{kScheme, kExternal, "attention_servers.addresses=[\"unix:a\"]"},
       "this needs attention_servers.token_file"},
      {{kScheme, kExternal, "attention_servers.addresses=[\"unix:a\", \"unix:a\"]",
        "attention_servers.token_file=t"},
       "\"unix:a\" stands there twice"},
      {{kScheme, kExternal, "attention_servers.addresses=[\"tcp:b:0\"]",
        "attention_servers.token_file=t"},
       "\"tcp:b:0\" has port 0"},
      {{kScheme, kExternal, "attention_servers.addresses=[\"unix:a\"]",
        "attention_servers.token_file=t", "device.kind=cuda"},
       "external servers attend to rows in host memory"},
      {{kScheme, "data.mask=causal_window", "data.window=9"}, "without a window"},
      {{kScheme, "data.mask=full_document"}, "causal or causal_document"},
      {{kScheme, "parallelism.context_parallel_layout=striped"}, "layout packed"},
      {{kScheme, "parallelism.context_parallel_switch=5:ring"},
       "disaggregated attends over data x context, and ring attends over context"},
      {{"parallelism.context_parallel_switch=5:disaggregated"}, "a run; stop it"},
  };
  for (const auto& [sets, message] : cases) {
    SCOPED_TRACE(message);
    test::expect_error(ExitCode::config, message, [&] { load(sets); });
  }
}

TEST(AttentionServersConfig, WhatIsRightIsTaken) {
  EXPECT_EQ(servers_text(load({})), std::nullopt);
  EXPECT_EQ(servers_text(load({kScheme})), "in place, on every rank");
  const TrainConfig dedicated = load({kScheme, kDedicated, "attention_servers.count=2"});
  EXPECT_EQ(servers_text(dedicated), "2 dedicated ranks: 4 to 5");
  EXPECT_EQ(attention_axis(dedicated).world_size(), 6);
  const TrainConfig external =
      load({kScheme, kExternal, "attention_servers.addresses=[\"unix:a\", \"tcp:b:1\"]",
            "attention_servers.token_file=t", "attention_servers.measure_speeds=true"});
  EXPECT_EQ(servers_text(external),
            "2 external servers: unix:a, tcp:b:1, by their measured speeds");
  EXPECT_EQ(attention_axis(external).world_size(), 4);
  EXPECT_EQ(attention_axis(external).servers.count, 2);
  // One data rank: both axes are the same ranks.
  load({kScheme, "parallelism.data_parallel_replicate_degree=1",
        "parallelism.context_parallel_switch=5:ring"});
  // What is resolved loads to the same, with a scheme that has servers and without.
  const test::TempDirectory folder;
  for (const TrainConfig& config : {load({}), dedicated, external}) {
    const TrainConfig again =
        load_config(folder.write("resolved.toml", to_toml(config)), {}).config;
    EXPECT_EQ(to_toml(again), to_toml(config));
  }
}

TEST(AttentionServersConfig, RanksAreThoseOfTheGridAndTheServers) {
  const std::vector<std::string> served = {kScheme, kDedicated, "attention_servers.count=2"};
  std::vector<std::string> left = served;
  left.push_back("parallelism.context_parallel_degree=-1");
  EXPECT_EQ(load(served, 6).parallelism.context_parallel_degree, 2);
  EXPECT_EQ(load(left, 8).parallelism.context_parallel_degree, 3);
  const auto refused = [](const TrainConfig& config, std::int64_t ranks, const char* message) {
    test::expect_error(ExitCode::launch, message, [&] { resolve_grid(config, ranks); });
  };
  refused(load(served), 4,
          "data 2 * context 2 + 2 attention servers = 6 ranks, but there are 4; start 6, or set "
          "parallelism.context_parallel_degree to 1 or -1");
  refused(load(served), 5, "but there are 5; start 6");
  refused(load(served), 1, "but there is 1; start 6");
  refused(load(left), 7, "start 2 and a multiple of 2 ranks");
  refused(load(left), 2, "start 2 and a multiple of 2 ranks");
  EXPECT_EQ(resolve_grid(load(left), 10), (runtime::GridShape{2, 4, 1, 1}));
}

}  // namespace
}  // namespace longhaul::launch
