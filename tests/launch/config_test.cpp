// What loads, and a table of wrong configurations, each with what is said of it.

#include "tests/support/config_test.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launch/config.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::DType;
using runtime::Error;
using runtime::ExitCode;
using test::ConfigTest;

TEST_F(ConfigTest, LoadsWithDefaults) {
  const TrainConfig config = load();
  EXPECT_EQ(config.model.architecture, "llama");
  EXPECT_EQ(config.model.head_dim, 32);
  EXPECT_FALSE(config.model.vocab_size.has_value());
  EXPECT_EQ(config.training.micro_batch_size, 1);
  EXPECT_EQ(config.training.dtype, DType::float32);
  EXPECT_EQ(config.parallelism.context_parallel_layout, "zigzag");
  EXPECT_EQ(config.checkpoint.resume.word, "auto");
  EXPECT_EQ(config.device.kind, "cpu");
  EXPECT_EQ(config.device.attention, "auto");
  EXPECT_FALSE(config.device.share);
  EXPECT_EQ(config.comm.nccl_max_ctas, 8);
  EXPECT_EQ(config.comm.shared_memory, "auto");
  EXPECT_EQ(batch_plan(config).sequences_per_step, 2);
  EXPECT_EQ(batch_plan(config).accumulation_steps, 2);
  EXPECT_EQ(checkpoint_folder(config), folder_.file("out/checkpoints"));
}

TEST_F(ConfigTest, PositionsFollowTheMaskUnlessTheySay) {
  const auto positions = [&](const std::string& data) {
    return load({{10, "corpus = \"CORPUS\"" + data}}).data.positions;
  };
  EXPECT_EQ(positions(""), "document");
  EXPECT_EQ(positions("\nwindow = 8"), "document");
  EXPECT_EQ(positions("\nmask = \"causal\""), "sequence");
  EXPECT_EQ(positions("\nmask = \"causal_window\"\nwindow = 8\npositions = \"auto\""), "sequence");
  EXPECT_EQ(positions("\nmask = \"causal\"\npositions = \"document\""), "document");
  EXPECT_EQ(positions("\npositions = \"sequence\""), "sequence");
}

TEST_F(ConfigTest, KeyValueHeadsDefaultToQueryHeads) {
  EXPECT_EQ(load({{8, ""}}).model.num_key_value_heads, 8);
}

struct WrongConfig {
  const char* name;
  std::map<int, std::string> replaced;
  std::vector<std::vector<std::string>>
      expected;  // per problem: how it starts, then parts it contains
  std::optional<std::int64_t> world = std::nullopt;
};

const std::vector<WrongConfig> kWrong = {
    {"unknown key",
     {{12, "sequence_len = 4096"}},
     {{"12:1: unknown key 'sequence_len' in [training]", "'seq_len'"}}},
    {"typo",
     {{14, "  stepps = 100"}},
     {{"14:3: unknown key 'stepps' in [training]; did you mean 'steps'?"}}},
    {"swapped letters", {{12, "seq_lne = 4096"}}, {{"12:1: unknown key 'seq_lne'", "'seq_len'"}}},
    {"far from any key",
     {{19, "[metrics]"}, {20, "zzz = 1"}},
     {{"20:1: unknown key 'zzz' in [metrics]", "'zzz' in [metrics]; no key has such a name"}}},
    {"key of another section",
     {{16, "lr = 0.1"}},
     {{"16:1: unknown key 'lr' in [lr_scheduler]; it belongs in [optimizer]"}}},
    {"typo of another section's key",
     {{16, "weight_decy = 0.1"}},
     {{"16:1: unknown key 'weight_decy'", "'weight_decay' in [optimizer]"}}},
    {"unknown section",
     {{15, "[lr_shceduler]"}},
     {{"15:2: unknown section [lr_shceduler]; did you mean [lr_scheduler]?"}}},
    {"unknown section hides required keys",
     {{11, "[trainig]"}},
     {{"11:2: unknown section [trainig]", "[training]"}}},
    {"unknown nested section",
     {{15, "[training.scheduler]"}},
     {{"15:11: unknown key 'scheduler' in [training]"}}},
    {"key outside a section",
     {{1, "seed = 3"}, {2, "[job]\noutput_dir = \"OUT\""}},
     {{"1:1: key 'seed' outside of a section; it belongs in [debug]"}}},
    {"section as a value",
     {{15, ""}, {16, ""}, {1, "metrics = 3\n[job]"}},
     {{"1:1: 'metrics' is a section", "an integer"}}},
    {"section as an array",
     {{15, "[[lr_scheduler]]"}},
     {{"15:3: 'lr_scheduler' is a section", "an array"}}},
    {"string for an integer",
     {{14, "steps = \"ten\""}},
     {{"14:9: training.steps = \"ten\": expected an integer of at least 1, got a string"}}},
    {"float for an integer",
     {{14, "steps = 1e3"}},
     {{"14:9: training.steps = 1000.0: expected an integer", "got a float"}}},
    {"integer for a string",
     {{2, "output_dir = 7"}},
     {{"2:14: job.output_dir = 7: expected a non-empty string, got an integer"}}},
    {"integer for a boolean",
     {{19, "[debug]"}, {20, "deterministic = 1"}},
     {{"20:17: debug.deterministic = 1: expected true or false, got an integer"}}},
    {"string for a float",
     {{19, "[optimizer]"}, {20, "lr = \"1e-3\""}},
     {{"20:6: optimizer.lr = \"1e-3\": expected a number", "got a string"}}},
    {"array",
     {{12, "seq_len = [4096]"}},
     {{"12:11: training.seq_len = [4096]: expected an integer", "got an array"}}},
    {"date",
     {{12, "seq_len = 2026-01-01"}},
     {{"12:11: training.seq_len = a date", "expected an integer"}}},
    {"zero steps",
     {{14, "steps = 0"}, {16, ""}},
     {{"14:9: training.steps = 0: expected an integer of at least 1"}}},
    {"negative",
     {{6, "num_hidden_layers = -4"}},
     {{"6:21: model.num_hidden_layers = -4: expected an integer of at least 1"}}},
    {"too large",
     {{4, "hidden_size = 99999999999"}},
     {{"4:15: model.hidden_size = 99999999999: expected at most 16777216"}}},
    {"not a number",
     {{19, "[optimizer]"}, {20, "lr = nan"}},
     {{"20:6: optimizer.lr = nan: expected a number"}}},
    {"infinite",
     {{19, "[training.x]"}, {20, "max_norm = inf"}},
     {{"19:11: unknown key 'x' in [training]"}}},
    {"infinite norm",
     {{14, "steps = 100\nmax_norm = inf"}},
     {{"15:12: training.max_norm = inf: expected a number of at least 0"}}},
    {"beta of one",
     {{19, "[optimizer]"}, {20, "beta2 = 1.0"}},
     {{"20:9: optimizer.beta2 = 1.0: expected a number of at least 0 and below 1"}}},
    {"zero epsilon",
     {{19, "[optimizer]"}, {20, "eps = 0"}},
     {{"20:7: optimizer.eps = 0: expected a number above 0"}}},
    {"zero epsilon of the norms, beside another problem",
     {{8, "rms_norm_eps = 0"}, {14, "steps = -1"}},
     {{"8:16: model.rms_norm_eps = 0: expected a number above 0 and at most 1"},
      {"14:9: training.steps = -1: expected an integer of at least 1"}}},
    {"integer beyond 64 bits",
     {{14, "steps = 99999999999999999999"}},
     {{"14:29: ", "'99999999999999999999' is not representable in 64 bits"}}},
    {"float beyond 64 bits",
     {{14, "steps = 100\nmax_norm = 1e999"}},
     {{"15:17: ", "'1e999' is not representable in 64 bits"}}},
    {"unknown choice",
     {{10, "corpus = \"CORPUS\"\nmask = \"document\""}},
     {{"11:8: data.mask = \"document\": expected one of \"full\", \"causal\", ",
       "; did you mean \"documents\"?"}}},
    {"mask of replay only",
     {{10, "corpus = \"CORPUS\"\nmask = \"block_sparse\""}},
     {{"11:8: data.mask = \"block_sparse\": ", "`longhaul attention`", "expected one of"}}},
    {"window missing",
     {{10, "corpus = \"CORPUS\"\nmask = \"causal_window\""}},
     {{"11:8: data.mask = \"causal_window\": this mask needs data.window"}}},
    {"window of zero",
     {{10, "corpus = \"CORPUS\"\nmask = \"causal_window\"\nwindow = 0"}},
     {{"12:10: data.window = 0: expected an integer of at least 1"}}},
    {"number not used",
     {{10, "corpus = \"CORPUS\"\nblock = 8"}},
     {{"11:9: data.block = 8: data.mask = \"documents\" does not use it; leave it out"}}},
    {"window of a mask that takes none",
     {{10, "corpus = \"CORPUS\"\nmask = \"prefix_document\"\nprefix = 3\nwindow = 8"}},
     {{"13:10: data.window = 8: data.mask = \"prefix_document\" does not use it; leave it out"}}},
    {"positions of neither kind",
     {{10, "corpus = \"CORPUS\"\npositions = \"documents\""}},
     {{"11:13: data.positions = \"documents\": expected one of \"auto\", \"document\", "
       "\"sequence\"; did you mean \"document\"?"}}},
    {"prefix too long",
     {{10, "corpus = \"CORPUS\"\nmask = \"prefix_causal\"\nprefix = 99999999"}},
     {{"12:10: data.prefix = 99999999: expected at most training.seq_len = "}}},
    {"two numbers missing",
     {{10, "corpus = \"CORPUS\"\nmask = \"global_window\""}},
     {{"11:8: data.mask = \"global_window\": this mask needs data.window"},
      {"11:8: data.mask = \"global_window\": this mask needs data.global"}}},
    {"layer types of another number of layers",
     {{6, "num_hidden_layers = 4\nlayer_types = [\"full_attention\", \"full_attention\"]"}},
     {{"7:15: model.layer_types = [\"full_attention\", \"full_attention\"]: 2 entries; expected "
       "one for each of the num_hidden_layers = 4"}}},
    {"unknown layer type",
     {{6, "num_hidden_layers = 1\nlayer_types = [\"sliding\"]"}},
     {{"7:16: model.layer_types", "\"sliding\"", "sliding_attention"}}},
    {"sliding layers without a window",
     {{6, "num_hidden_layers = 1\nlayer_types = [\"sliding_attention\"]"}},
     {{"7:15: model.layer_types = [\"sliding_attention\"]: \"sliding_attention\" needs "
       "model.sliding_window (tokens)"}}},
    {"window without sliding layers",
     {{6, "num_hidden_layers = 1\nlayer_types = [\"full_attention\"]\nsliding_window = 8"}},
     {{"8:18: model.sliding_window = 8: no layer of model.layer_types is sliding_attention"}}},
    {"sliding layers of a mask that is not causal",
     {{6, "num_hidden_layers = 1\nlayer_types = [\"sliding_attention\"]\nsliding_window = 8"},
      {10, "corpus = \"CORPUS\"\nmask = \"prefix_causal\"\nprefix = 5"}},
     {{"7:15: model.layer_types = [\"sliding_attention\"]: \"sliding_attention\" needs a causal "
       "mask, and with data.mask = "
       "\"prefix_causal\" queries see later keys; use full_attention, or one of the masks causal, "
       "causal_document, documents, "}}},
    {"interleaving one pass",
     {{13, "tokens_per_step = 4096\ninterleave = 2"}},
     {{"14:14: training.interleave = 2: a step has one pass", "tokens_per_step", "4096",
       "micro_batch_size"}}},
    {"interleaving three",
     {{13, "tokens_per_step = 8192\ninterleave = 3"}},
     {{"14:14: training.interleave = 3: expected at most 2"}}},
    {"unknown layout",
     {{18, "context_parallel_layout = \"zig-zag\""}},
     {{"18:27: parallelism.context_parallel_layout = \"zig-zag\"", "\"zigzag\"?"}}},
    {"unknown dtype",
     {{14, "steps = 100\ndtype = \"fp32\""}},
     {{"15:9: training.dtype = \"fp32\": here it is called \"float32\"; expected one of "
       "\"float32\", \"bfloat16\""}}},
    {"unsupported optimizer",
     {{19, "[optimizer]"}, {20, "name = \"sgd\""}},
     {{"20:8: optimizer.name = \"sgd\": expected \"adamw\""}}},
    {"resume word",
     {{19, "[checkpoint]"}, {20, "resume = \"latest\""}},
     {{"20:10: checkpoint.resume = \"latest\": here it is called \"auto\"; expected one of "
       "\"auto\", \"never\", or an "
       "integer of at least 0"}}},
    {"negative resume step",
     {{19, "[checkpoint]"}, {20, "resume = -1"}},
     {{"20:10: checkpoint.resume = -1"}}},
    {"resume past the end",
     {{19, "[checkpoint]"}, {20, "resume = 101"}},
     {{"20:10: checkpoint.resume = 101: expected at most training.steps = 100"}}},
    {"empty output folder",
     {{2, "output_dir = \"\""}},
     {{"2:14: job.output_dir = \"\": expected a non-empty string"}}},
    {"missing key",
     {{14, ""}, {16, ""}},
     {{"11:2: missing key 'steps' in [training]: expected an integer of at least 1"}}},
    {"missing section", {{9, ""}, {10, ""}}, {{"1:1: missing key 'corpus' in [data]"}}},
    {"corpus missing",
     {{10, "corpus = \"/nonexistent/c.h5\""}},
     {{"10:10: data.corpus = \"/nonexistent/c.h5\": no such file", "longhaul tokenize"}}},
    {"two ways to name corpora",
     {{10, "corpus = \"CORPUS\"\ncorpora = [{path = \"CORPUS\", weight = 1}]"}},
     {{"11:11: data.corpora = [{path = ", "data.corpus is given too; leave one of them out"}}},
    {"a mixture of nothing",
     {{10, "corpora = []"}},
     {{"10:11: data.corpora = []: expected at least one corpus"}}},
    {"files of a mixture",
     {{10,
       "corpora = [{path = \"CORPUS\", weight = 2},\n  {path = \"/nonexistent/c.h5\", weight = "
       "1},\n  {path = \"/\", weight = 1.5}]"}},
     {{"11:3: data.corpora[1] = {path = \"/nonexistent/c.h5\", weight = 1}: no such file",
       "longhaul tokenize"},
      {"12:3: data.corpora[2] = {path = \"/\", weight = 1.5}: expected an HDF5 file"}}},
    {"shares of a mixture",
     {{10,
       "corpora = [{path = \"CORPUS\", weight = 2},\n  {path = \"a.h5\", weight = 1e-10},\n  "
       "{path = \"a.h5\", weight = 2}]"}},
     {{"11:3: data.corpora[1] = {path = \"a.h5\", weight = 1e-10}: its share is 2.5e-11 of the "
       "sequences; expected at least 1e-09"},
      {"12:3: data.corpora[2] = ", "this path is there twice; add its weights up"}}},
    {"keys of a mixture",
     {{10, "corpora = [{path = \"CORPUS\", wieght = 2}, {path = \"\", weight = 0}]"}},
     {{"10:12: data.corpora[0] = {path = ", "missing key 'weight': expected a number above 0"},
      {"10:",
       "data.corpora[0].wieght = 2: unknown key; expected path, weight; did you mean 'weight'?"},
      {"10:", "data.corpora[1].path = \"\": expected a non-empty string"},
      {"10:", "data.corpora[1].weight = 0: expected a number above 0"}}},
    {"a misspelled mixture",
     {{10, "corporas = [{path = \"CORPUS\", weight = 2}]"}},
     {{"10:1: unknown key 'corporas' in [data]; did you mean 'corpora'?"}}},
    {"corpus is a folder",
     {{10, "corpus = \"/\""}},
     {{"10:10: data.corpus = \"/\": expected an HDF5 file"}}},
    {"output is a file",
     {{2, "output_dir = \"CORPUS\""}, {10, "corpus = \"/dev/null/x\""}},
     {{"2:14: job.output_dir = ", "expected a folder"}, {"10:10: data.corpus"}}},
    {"heads",
     {{8, "num_key_value_heads = 3"}},
     {{"8:23: model.num_key_value_heads = 3: expected a divisor of num_attention_heads = 8"}}},
    {"odd head", {{8, "head_dim = 33"}}, {{"8:12: model.head_dim = 33: expected an even number"}}},
    {"hidden size",
     {{4, "hidden_size = 250"}},
     {{"4:15: model.hidden_size = 250: expected a multiple of num_attention_heads = 8"}}},
    {"hidden size gives an odd head",
     {{4, "hidden_size = 8"}},
     {{"4:15: model.hidden_size = 8: hidden_size / num_attention_heads = 1"}}},
    {"tokens per step",
     {{13, "tokens_per_step = 10000"}},
     {{"13:19: training.tokens_per_step = 10000: expected a multiple of", "= 4096 * 1 * 1",
       "legal nearby: 8192, 12288"}}},
    {"too few tokens per step",
     {{18, "data_parallel_replicate_degree = 4"}},
     {{"13:19: training.tokens_per_step = 8192", "= 4096 * 1 * 4", "legal nearby: 16384, 32768"}}},
    {"product beyond 64 bits",
     {{12, "seq_len = 1000000000000\nmicro_batch_size = 1000000"},
      {18, "data_parallel_replicate_degree = 1000000"}},
     {{"14:19: training.tokens_per_step = 8192", "no run can hold"}}},
    {"warm-up",
     {{16, "warmup_steps = 101"}},
     {{"16:16: lr_scheduler.warmup_steps = 101: expected at most training.steps = 100"}}},
    {"degree zero",
     {{18, "context_parallel_degree = 0"}},
     {{"18:27: parallelism.context_parallel_degree = 0: expected an integer of at least 1, or "
       "-1"}}},
    {"degree below -1",
     {{18, "context_parallel_degree = -2"}},
     {{"18:27: parallelism.context_parallel_degree = -2"}}},
    {"tensor axis",
     {{18, "tensor_parallel_degree = 2"}},
     {{"18:26: parallelism.tensor_parallel_degree = 2: this axis is not built yet"}}},
    {"pipeline axis",
     {{18, "pipeline_parallel_degree = 2"}},
     {{"18:28: parallelism.pipeline_parallel_degree = 2: this axis is not built yet"}}},
    {"grid of six on four",
     {{13, "tokens_per_step = 12288"},
      {18, "context_parallel_degree = 2\ndata_parallel_replicate_degree = 3"}},
     {{"18:27: parallelism.context_parallel_degree = 2: data 3 * context 2 = 6 ranks, but there "
       "are 4; start 6"}},
     4},
    {"grid of three on four",
     {{18, "context_parallel_degree = 3"}},
     {{"18:27: parallelism.context_parallel_degree = 3",
       "start 3, or set parallelism.context_parallel_degree to 4 or -1"}},
     4},
    {"nothing left",
     {{13, "tokens_per_step = 12288"}, {18, "data_parallel_replicate_degree = 3"}},
     {{"18:34: parallelism.data_parallel_replicate_degree = 3: 4 ranks do not divide into 3 "
       "replicas"}},
     4},
    {"loopback of unknown size",
     {{18, "context_parallel_degree = -1"}, {19, "[comm]"}, {20, "backend = \"loopback\""}},
     {{"18:27: parallelism.context_parallel_degree = -1: comm.backend = \"loopback\""}}},
    {"memory of GPUs on the CPU",
     {{19, "[comm]"}, {20, "backend = \"nccl\""}},
     {{"20:11: comm.backend = \"nccl\": it moves memory of GPUs, and device.kind is \"cpu\"",
       "set device.kind = \"cuda\"", "or use \"mpi\""}}},
    {"cuDNN on the CPU",
     {{19, "[device]"}, {20, "attention = \"cudnn\""}},
     {{"20:13: device.attention = \"cudnn\": cuDNN runs on GPUs, and device.kind is \"cpu\""}}},
    {"validation by threads of several data ranks on a GPU",
     {{18, "data_parallel_replicate_degree = 2"},
      {19, "context_parallel_degree = 1"},
      {20, "[comm]"},
      {21, "backend = \"loopback\""},
      {22, "[device]"},
      {23, "kind = \"cuda\""},
      {24, "[validation]"},
      {25, "enable = true"},
      {26, "corpus = \"none.h5\""}},
     {{"25:10: validation.enable = true: with comm.backend = \"loopback\" on a GPU",
       "one data rank, not 2", "use comm.backend = \"mpi\" or \"nccl\""},
      {"26:10: validation.corpus = \"none.h5\": no such file"}}},
    {"unknown device",
     {{19, "[device]"}, {20, "kind = \"gpu\""}},
     {{"20:8: device.kind = \"gpu\": here it is called \"cuda\"; expected one of \"cpu\", "
       "\"cuda\""}}},
    {"duplicate key", {{13, "seq_len = 8192"}}, {{"13:", "seq_len"}}},
    {"duplicate section", {{15, "[training]"}}, {{"15:", "training"}}},
    {"no value", {{14, "steps ="}}, {{"14:"}}},
    {"unclosed string", {{10, "corpus = \"c.h5"}}, {{"10:"}}},
    {"unclosed section", {{11, "[training"}}, {{"11:10: "}}},
    {"not UTF-8", {{2, "output_dir = \"\xff\""}}, {{"2:"}}},
};

TEST_F(ConfigTest, WrongConfigsAreReportedWhereTheyAreWrong) {
  EXPECT_GE(kWrong.size(), 40u);
  for (const WrongConfig& wrong : kWrong) {
    SCOPED_TRACE(wrong.name);
    const std::vector<std::string> found = problems(wrong.replaced, {}, wrong.world);
    std::string all;
    for (const std::string& line : found) all += line + "\n";
    EXPECT_EQ(found.size(), wrong.expected.size()) << all;
    for (std::size_t i = 0; i < std::min(found.size(), wrong.expected.size()); ++i) {
      EXPECT_TRUE(found[i].starts_with(wrong.expected[i][0]))
          << found[i] << "\nexpected " << wrong.expected[i][0];
      for (const std::string& part : wrong.expected[i]) {
        EXPECT_NE(found[i].find(part), std::string::npos) << found[i] << "\nlacks " << part;
      }
    }
  }
}

TEST_F(ConfigTest, AllProblemsComeTogetherInFileOrder) {
  const auto found = problems({{4, "hidden_sise = 256"},
                               {6, "num_hidden_layers = 0"},
                               {14, "steps = true"},
                               {16, "warmup_steps = \"x\""}},
                              {"optimizer.lr=fast", "training.seqlen=3"}, 3);
  ASSERT_EQ(found.size(), 7u);
  EXPECT_TRUE(found[0].starts_with("4:1: unknown key 'hidden_sise'"));
  EXPECT_TRUE(found[1].starts_with("6:21: model.num_hidden_layers = 0"));
  EXPECT_TRUE(found[2].starts_with(
      "14:9: training.steps = true: expected an integer of at least 1, got a boolean"));
  EXPECT_TRUE(found[3].starts_with("16:16: lr_scheduler.warmup_steps = \"x\""));
  EXPECT_TRUE(found[4].starts_with(
      "18:27: parallelism.context_parallel_degree = 4: data 1 * context 4 = 4 ranks"));
  EXPECT_EQ(found[5],
            "--set optimizer.lr=fast: optimizer.lr = \"fast\": expected a number of at least 0, "
            "got a string");
  EXPECT_TRUE(found[6].starts_with(
      "--set training.seqlen=3: unknown key 'seqlen' in [training]; did you mean 'seq_len'?"));
}

TEST_F(ConfigTest, UnreadableFileIsAConfigError) {
  for (const std::string& path : {folder_.file("absent.toml"), folder_.path().string()}) {
    try {
      load_config(path, {});
      ADD_FAILURE() << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace longhaul::launch
