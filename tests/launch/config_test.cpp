// Long: a table of wrong configurations, each with what is said of it.

#include "launch/config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>

#include "runtime/error.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

using runtime::DType;
using runtime::Error;
using runtime::ExitCode;
using runtime::GridShape;

// A right configuration, line by line: the cases below replace lines of it.
const std::vector<std::string> kLines = {
    "[job]",                        // 1
    "output_dir = \"OUT\"",         // 2
    "[model]",                      // 3
    "hidden_size = 256",            // 4
    "intermediate_size = 688",      // 5
    "num_hidden_layers = 4",        // 6
    "num_attention_heads = 8",      // 7
    "num_key_value_heads = 4",      // 8
    "[data]",                       // 9
    "corpus = \"CORPUS\"",          // 10
    "[training]",                   // 11
    "seq_len = 4096",               // 12
    "tokens_per_step = 8192",       // 13
    "steps = 100",                  // 14
    "[lr_scheduler]",               // 15
    "warmup_steps = 10",            // 16
    "[parallelism]",                // 17
    "context_parallel_degree = 4",  // 18
};

class ConfigTest : public testing::Test {
 protected:
  ConfigTest() : corpus_(folder_.write("corpus.h5", "not read here")) {}

  std::string text_with(const std::map<int, std::string>& replaced) const {
    std::string text;
    const auto last = std::max<int>(static_cast<int>(kLines.size()),
                                    replaced.empty() ? 0 : replaced.rbegin()->first);
    for (int line = 1; line <= last; ++line) {
      const auto found = replaced.find(line);
      const auto index = static_cast<std::size_t>(line - 1);
      text += (found != replaced.end() ? found->second
               : index < kLines.size() ? kLines[index]
                                       : "") +
              "\n";
    }
    for (const auto& [from, to] :
         {std::pair<std::string, std::string>("\"CORPUS\"", "\"" + corpus_ + "\""),
          std::pair<std::string, std::string>("\"OUT\"", "\"" + folder_.file("out") + "\"")}) {
      const auto at = text.find(from);
      if (at != std::string::npos) text.replace(at, from.size(), to);
    }
    return text;
  }
  std::string file_with(const std::map<int, std::string>& replaced) const {
    return folder_.write("run.toml", text_with(replaced));
  }
  TrainConfig load(const std::map<int, std::string>& replaced = {},
                   const std::vector<std::string>& overrides = {},
                   std::optional<std::int64_t> world = std::nullopt) const {
    return load_config(file_with(replaced), overrides, world).config;
  }
  /// The problems as lines "line:column: message" (or "--set ...: message"), without the heading.
  std::vector<std::string> problems(const std::map<int, std::string>& replaced,
                                    const std::vector<std::string>& overrides = {},
                                    std::optional<std::int64_t> world = std::nullopt) const {
    const std::string path = file_with(replaced);
    try {
      load_config(path, overrides, world);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config) << error.what();
      std::istringstream text(error.what());
      std::vector<std::string> lines;
      std::string line, heading;
      std::getline(text, heading);
      while (std::getline(text, line)) {
        if (line.starts_with(path + ":")) line.erase(0, path.size() + 1);
        lines.push_back(line);
      }
      EXPECT_TRUE(heading.starts_with(fmt::format("{} problem", lines.size()))) << heading;
      return lines;
    }
    return {};
  }

  test::TempDirectory folder_;
  std::string corpus_;
};

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

TEST_F(ConfigTest, OverridesWin) {
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

TEST_F(ConfigTest, WrongOverridesNameThemselves) {
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

TEST_F(ConfigTest, PathsAreExpanded) {
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

TEST_F(ConfigTest, ResolvedTextRoundTrips) {
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

TEST_F(ConfigTest, JsonHoldsEveryKey) {
  const auto json = nlohmann::json::parse(to_json(load()));
  for (const runtime::ConfigKey& key : config_schema().keys()) {
    std::string place = "/" + key.path();
    std::ranges::replace(place, '.', '/');
    EXPECT_TRUE(json.contains(nlohmann::json::json_pointer(place))) << key.path();
  }
  EXPECT_EQ(json["training"]["seq_len"], 4096);
  EXPECT_EQ(json["checkpoint"]["resume"], "auto");
}

TEST_F(ConfigTest, GridTakesWhatIsLeft) {
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
