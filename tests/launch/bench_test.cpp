// `longhaul bench attention` and `bench step`: operations counted by hand, what is written, and
// what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/ops/matmul.h"
#include "tests/support/process.h"
#include "tests/support/temp_directory.h"

namespace longhaul::launch {
namespace {

using Json = nlohmann::json;

test::ProcessResult bench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "bench");
  return test::run_longhaul(arguments);
}

class Bench : public testing::Test {
 protected:
  /// Runs it and returns its JSON.
  Json run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--json", path(), "--force"});
    const test::ProcessResult result = bench(std::move(arguments));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    printed_ = result.out;
    return Json::parse(test::read_text(path()));
  }
  std::string path() const { return folder_.file("bench.json"); }
  void expect_says(const std::string& text) const {
    EXPECT_NE(printed_.find(text), std::string::npos) << text << " is not in\n" << printed_;
  }

  test::TempDirectory folder_;
  std::string printed_;
};

/// Of one of kStep's two ranks, each of which has half of two sequences of 96.
void expect_parts(const Json& json) {
  const Json& all = json["parts"];
  std::map<std::string, Json> parts;
  double seconds = 0;
  for (const Json& part : all["parts"]) {
    parts[part["part"]] = part;
    seconds += part["seconds"].get<double>();
  }
  EXPECT_NEAR(seconds, all["seconds"].get<double>(), 1e-2 * seconds);
  for (const char* name : {"attention", "matmul", "norms", "rope", "glu", "loss", "optimizer"}) {
    ASSERT_TRUE(parts.contains(name)) << name;
    EXPECT_GT(parts[name]["tasks"], 0) << name;
    EXPECT_GT(parts[name]["least_seconds"].get<double>(), 0) << name;
  }
  // Every pair of the three layers and four heads of 8: 4 forward and 10 backward.
  const double pairs = 3 * (96 * 97 / 2);
  EXPECT_EQ(parts["attention"]["flops"].get<double>(), 14 * 8 * 4 * pairs);
  EXPECT_EQ(parts["matmul"]["flops"].get<double>(),
            json["flops"].get<double>() / 2 - 12 * 8 * 4 * pairs);
  EXPECT_GT(all["of_ceiling"].get<double>(), 0);
  EXPECT_LT(all["of_ceiling"].get<double>(), 1);
}

void expect_ordered(const Json& seconds, int count) {
  EXPECT_EQ(seconds["repetitions"], count);
  double before = 0;
  for (const char* which : {"least", "lower_quartile", "median", "upper_quartile", "most"}) {
    EXPECT_GT(seconds[which].get<double>(), 0) << which;
    EXPECT_GE(seconds[which].get<double>(), before) << which;
    before = seconds[which];
  }
}

/// Pairs counted one by one.
std::int64_t pairs_of(const std::string& mask, std::int64_t n, std::int64_t window,
                      std::int64_t document) {
  std::int64_t pairs = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const bool causal = j <= i;
      if (mask == "full" || (mask == "causal" && causal) ||
          (mask == "causal_window" && causal && j > i - window) ||
          (mask == "documents" && causal && i / document == j / document))
        ++pairs;
    }
  }
  return pairs;
}

TEST_F(Bench, AttentionCountsTheVisiblePairs) {
  const Json json =
      run({"attention", "--tokens", "67,128", "--head-dim", "16,8", "--heads", "4", "--kv-heads",
           "4,1", "--window", "9", "--document", "50", "--repeats", "3"});
  EXPECT_EQ(json["record"], "bench attention");
  ASSERT_EQ(json["gemm"].size(), 1u);
  const Json& product = json["gemm"][0];
  EXPECT_EQ(product["dtype"], "float32");
  expect_ordered(product["seconds"], 3);
  EXPECT_EQ(product["flops"], 2.0 * 1024 * 1024 * 1024);
  const double gemm = product["flops"].get<double>() / product["seconds"]["median"].get<double>();
  ASSERT_EQ(json["cases"].size(), 4u * 2 * 2 * 2 * 2);
  for (const Json& row : json["cases"]) {
    const double each = row["direction"] == "forward" ? 4 : 10;
    const double pairs =
        static_cast<double>(pairs_of(row["mask"], row["tokens"].get<std::int64_t>(), 9, 50));
    EXPECT_EQ(row["flops"].get<double>(), each * pairs * 4 * row["head_dim"].get<double>()) << row;
    expect_ordered(row["seconds"], 3);
    const double rate = row["flops"].get<double>() / row["seconds"]["median"].get<double>();
    EXPECT_NEAR(row["flops_per_second"].get<double>(), rate, 1e-9 * rate);
    EXPECT_NEAR(row["of_gemm"].get<double>(), rate / gemm, 1e-9 * rate / gemm);
    const double peak = row["peak_flops_per_second"];
    EXPECT_GT(peak, 1e9);
    EXPECT_NEAR(row["of_peak"].get<double>(), rate / peak, 1e-9 * rate / peak);
    EXPECT_GT(row["cores"].get<double>(), 0);
    EXPECT_EQ(row["dtype"], "float32");
  }
  expect_says("backward         causal_window        128     4:1       8  float32");
  expect_says("peak of float32: float32 FMA");
}

TEST_F(Bench, AttentionOfSeveralDtypesWithValuesOfTheirOwnDimBothWays) {
  const Json json =
      run({"attention", "--tokens", "40", "--head-dim", "24", "--value-dim", "16", "--heads", "2",
           "--kv-heads", "1", "--mask", "causal", "--dtype", "float32,bfloat16", "--direction",
           "forward,backward,forward_backward", "--repeats", "2"});
  ASSERT_EQ(json["cases"].size(), 2u * 3);
  ASSERT_EQ(json["gemm"].size(), 2u);
  EXPECT_EQ(json["gemm"][1]["dtype"], "bfloat16");
  constexpr double kPairs = 2 * 40 * 41 / 2;
  for (std::size_t i = 0; i < json["cases"].size(); ++i) {
    const Json& row = json["cases"][i];
    EXPECT_EQ(row["dtype"], i < 3 ? "float32" : "bfloat16");
    EXPECT_EQ(row["value_dim"], 16);
    const double forward = kPairs * 2 * (24 + 16), backward = kPairs * 2 * (3 * 24 + 2 * 16);
    const double expected[] = {forward, backward, forward + backward};
    EXPECT_EQ(row["flops"].get<double>(), expected[i % 3]) << row;
    expect_ordered(row["seconds"], 2);
  }
  expect_says("24/16  bfloat16");
}

TEST_F(Bench, PeakIsWellFormedAndPhysical) {
  const Json json = run({"peak", "--seconds", "0.01", "--threads", "2"});
  EXPECT_EQ(json["record"], "bench peak");
  EXPECT_EQ(json["threads"], 2);
  // Of each thread: two AMX units could not do 20 TFLOP/s, two lines a cycle are not 1 TB/s.
  std::map<std::string, int> rows;
  for (const Json& row : json["rates"]) {
    ++rows[row["of"]];
    const Json& rate = row["per_second"];
    EXPECT_GT(rate["lower_quartile"].get<double>(), 0) << row;
    EXPECT_GE(rate["median"].get<double>(), rate["lower_quartile"].get<double>()) << row;
    EXPECT_GE(rate["upper_quartile"].get<double>(), rate["median"].get<double>()) << row;
    EXPECT_LT(rate["upper_quartile"].get<double>(),
              row["threads"].get<double>() * (row["of"] == "flops" ? 20e12 : 1e12))
        << row;
  }
  EXPECT_GE(rows["flops"], 2 + 2);
  EXPECT_EQ(rows["bytes"], 3 * 2);
  ASSERT_EQ(json["exchanges"].size(), 3u * 2);
  for (const Json& row : json["exchanges"]) {
    EXPECT_EQ(row["backend"], "loopback");
    EXPECT_DOUBLE_EQ(row["bytes_per_second"].get<double>(),
                     row["bytes"].get<double>() / row["seconds"]["median"].get<double>());
    EXPECT_LT(row["bytes_per_second"].get<double>(), 1e12);
  }
  ASSERT_EQ(json["wakes"].size(), 4u);
  for (const Json& row : json["wakes"]) {
    EXPECT_GT(row["region_seconds"]["median"].get<double>(), 0);
    EXPECT_GT(row["task_seconds"]["median"].get<double>(), 0);
  }
  expect_says("float32 FMA, AVX2");
  expect_says("mpirun -n 2 longhaul bench peak");
}

TEST_F(Bench, PeakOfTheLevelInUse) {
  const auto at = [&](const std::string& level) {
    test::ProcessOptions options;
    options.environment = {{"LONGHAUL_CPU_LEVEL", level}};
    return test::run_longhaul({"bench", "peak", "--what", "units", "--seconds", "0.01"}, options);
  };
  const test::ProcessResult narrow = at("avx2");
  EXPECT_EQ(narrow.exit_code, 0) << narrow.err;
  EXPECT_NE(narrow.out.find("float32 FMA, AVX2 (in use)"), std::string::npos) << narrow.out;
  EXPECT_EQ(narrow.out.find("memcpy"), std::string::npos) << narrow.out;
}

TEST_F(Bench, LinearCountsChunksAndBytes) {
  const Json json =
      run({"linear", "--kind",    "scalar,kda", "--tokens",    "96,256",     "--head-dim",
           "8",      "--heads",   "4",          "--key-heads", "2",          "--softmax-tokens",
           "100",    "--ranks",   "4",          "--layout",    "contiguous", "--scheme",
           "lasp2",  "--repeats", "3"});
  EXPECT_EQ(json["record"], "bench linear");
  EXPECT_EQ(json["dtype"], "float32");
  EXPECT_EQ(json["state_bytes"], 4 * 8 * 8 * 4);
  const auto peak = json["peak"]["flops"].get<double>();
  EXPECT_GT(peak, 0);
  ASSERT_EQ(json["cases"].size(), 2u * 2 * 2);
  for (const Json& row : json["cases"]) {
    const bool forward = row["direction"] == "forward", delta = row["kind"] == "kda";
    const auto tokens = row["tokens"].get<std::int64_t>();
    // A token and head of dims 8, in chunks of 64: 2c(d+e) + 4de, 2c(3d+2e) + 10de; delta 2c(2d+2e)
    // + 6de, c(12d+10e) + 14de.
    const double each =
        delta ? (forward ? 4096 + 384 : 11264 + 896) : (forward ? 2048 + 256 : 5120 + 640);
    EXPECT_EQ(row["flops"].get<double>(), each * 4 * static_cast<double>(tokens)) << row;
    expect_ordered(row["seconds"], 3);
    const double rate = row["flops"].get<double>() / row["seconds"]["median"].get<double>();
    EXPECT_NEAR(row["flops_per_second"].get<double>(), rate, 1e-9 * rate);
    EXPECT_NEAR(row["of_peak"].get<double>(), rate / peak, 1e-9 * rate / peak);
    EXPECT_EQ(row.contains("softmax_seconds"), tokens == 96) << row;
    // Whatever the length, rank 0 forward (rank 3 backward) sends its state to three others. Rank 1
    // sends to two, with transitions: H, or H D^2 numbers.
    const std::int64_t state = 4 * 8 * 8 * 4, transition = (delta ? 4 * 8 * 8 : 4) * 4;
    EXPECT_EQ(row["sent_bytes"], std::max(3 * state, 2 * (state + transition))) << row;
    // Ring: keys and values of a quarter of the tokens, three times, forward.
    if (forward) {
      EXPECT_EQ(row["ring_sent_bytes"], 3 * (tokens / 4) * 2 * 2 * 8 * 4) << row;
    }
  }
  ASSERT_EQ(json["crossovers"].size(), 4u);
  for (const Json& row : json["crossovers"]) EXPECT_EQ(row["softmax_up_to"], 96) << row;
  expect_says("backward  kda                 256     4:2    8");
  expect_says("softmax attention's");
}

TEST_F(Bench, OneRanksPartHasItsShareOfTheArea) {
  for (const std::string layout : {"zigzag", "striped", "contiguous"}) {
    const Json json = run({"attention", "--ranks", "4", "--layout", layout, "--tokens", "32",
                           "--head-dim", "8", "--heads", "2", "--kv-heads", "1", "--mask", "causal",
                           "--repeats", "3", "--dtype", "bfloat16"});
    EXPECT_EQ(json["scheme"], "ring");
    EXPECT_EQ(json["ranks"], 4);
    ASSERT_EQ(json["cases"].size(), 2u);
    for (const Json& row : json["cases"]) {
      // 128 tokens. Zigzag: equal shares. Contiguous: the last rank, whose rows see most.
      std::int64_t pairs = 128 * 129 / 2 / 4;
      if (layout == "contiguous") pairs = 128 * 129 / 2 - 96 * 97 / 2;
      if (layout == "striped") {
        pairs = 0;
        for (std::int64_t i = 3; i < 128; i += 4) pairs += i + 1;
      }
      const double each = row["direction"] == "forward" ? 4 : 10;
      EXPECT_EQ(row["flops"].get<double>(), each * static_cast<double>(pairs) * 2 * 8) << row;
      expect_ordered(row["seconds"], 3);
      expect_ordered(row["one_call_seconds"], 3);
      expect_ordered(row["without_merging_seconds"], 3);
      // Medians of what turns say lie between the extremes.
      const auto ratio_lies_within = [&](double ratio, const char* of) {
        const Json &times = row[of], &whole = row["seconds"];
        EXPECT_GE(ratio, times["least"].get<double>() / whole["most"].get<double>()) << row;
        EXPECT_LE(ratio, times["most"].get<double>() / whole["least"].get<double>()) << row;
      };
      ratio_lies_within(row["of_one_call"], "one_call_seconds");
      ratio_lies_within(1 - row["merging"].get<double>(), "without_merging_seconds");
    }
  }
}

TEST_F(Bench, ASchemeInWhichRanksHelpEachOtherHasNoOneCall) {
  const Json json = run({"attention", "--ranks", "3", "--scheme", "balanced_ring", "--layout",
                         "contiguous", "--tokens", "20", "--head-dim", "8", "--mask", "causal",
                         "--direction", "forward", "--repeats", "2"});
  EXPECT_FALSE(json["cases"][0].contains("one_call_seconds"));
}

TEST_F(Bench, WhatCannotBeTimedIsRefused) {
  const auto refused = [](std::vector<std::string> arguments, int code, const std::string& why) {
    arguments.insert(arguments.begin(), "attention");
    const test::ProcessResult result = bench(arguments);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_NE(result.err.find(why), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  };
  refused({"--heads", "6", "--kv-heads", "4"}, 64, "--heads 6 is no multiple of --kv-heads 4");
  refused({"--ranks", "2", "--direction", "forward_backward"}, 64, "--direction forward_backward");
  refused({"--dtype", "float16"}, 78, "float16: expected float32 or bfloat16");
  refused({"--mask", "prefix"}, 64, "--mask");
  refused({"--layout", "spiral"}, 78, "spiral");
  refused({"--ranks", "3", "--scheme", "ulysses", "--heads", "4"}, 78, "ulysses");
  refused({"--json", folder_.path() / "none" / "bench.json"}, 74, "none");
  test::write_text(path(), "mine");
  refused({"--json", path()}, 64, path());
  EXPECT_EQ(test::read_text(path()), "mine");
}

constexpr const char* kStep = R"(
[job]
output_dir = "$none$"
[model]
architecture = "llama"
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 3
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
rms_norm_eps = 1e-5
rope_theta = 10000.0
tie_word_embeddings = true
vocab_size = 101
[data]
corpus = "$none$/corpus.h5"
mask = "documents"
[training]
seq_len = 96
micro_batch_size = 1
tokens_per_step = 192
steps = 2
max_norm = 1.0
dtype = "float32"
[optimizer]
name = "adamw"
lr = 1e-3
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.1
[lr_scheduler]
warmup_steps = 1
decay_type = "cosine"
min_lr_factor = 0.1
[parallelism]
context_parallel_degree = 2
context_parallel_scheme = "ring"
context_parallel_layout = "zigzag"
data_parallel_replicate_degree = 1
[comm]
backend = "loopback"
[debug]
threads = 1
)";

class BenchStep : public Bench {
 protected:
  BenchStep() { write(kStep); }
  void write(std::string text) {
    for (auto at = text.find("$none$"); at != std::string::npos; at = text.find("$none$"))
      text.replace(at, 6, folder_.file("none"));
    test::write_text(config(), text);
  }
  std::string config() const { return folder_.file("config.toml"); }
  bool wrote_nothing() const { return !std::filesystem::exists(folder_.file("none")); }
};

TEST_F(BenchStep, FiguresAreThoseByHand) {
  const Json json = run({"step", config(), "--steps", "4", "--warm-up", "1"});
  EXPECT_TRUE(wrote_nothing());
  EXPECT_EQ(json["record"], "bench step");
  EXPECT_EQ(json["tokens"], 192);
  expect_ordered(json["seconds"], 4);
  // q, k, v, out; gate, up, down; and the head.
  const double layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48;
  const double matrices = 3 * layer + 32 * 101;
  const double pairs = 2 * 3 * (96 * 97 / 2);  // of two sequences in three layers
  const double flops = 6 * 192 * matrices + 12 * 8 * 4 * pairs;
  EXPECT_EQ(json["flops"].get<double>(), flops);
  const double median = json["seconds"]["median"];
  EXPECT_DOUBLE_EQ(json["tokens_per_second"], 192 / median);
  EXPECT_DOUBLE_EQ(json["mfu"], flops / median / json["peak_flops"].get<double>());
  EXPECT_GT(json["forward_seconds"].get<double>(), 0);
  // Weights are drawn small, so that every token is as likely as any other.
  EXPECT_NEAR(json["loss"].get<double>(), std::log(101), 0.3);
  EXPECT_EQ(json["config"]["training"]["seq_len"], 96);
  const double memory = json["memory_bytes"], estimated = json["estimated_bytes"];
  // Products of so few rows take less than the most that a product of a thread takes.
  // Estimates leave out what the products of so small a model take.
  EXPECT_LE(memory, 1.05 * estimated + static_cast<double>(runtime::ops::kSmallMatmulScratchBytes));
  EXPECT_GE(memory, 0.95 * estimated);
  expect_says("model FLOPs: 6 per matrix weight and token");
  expect_parts(json);
}

TEST_F(BenchStep, DocumentsHaveTheirOwnArea) {
  const Json json = run({"step", config(), "--steps", "1", "--warm-up", "0", "--document", "40"});
  const Json whole = run({"step", config(), "--steps", "1", "--warm-up", "0"});
  const double fewer = 96 * 97 / 2 - 2 * (40 * 41 / 2) - 16 * 17 / 2;
  EXPECT_EQ(whole["flops"].get<double>() - json["flops"].get<double>(), 12 * 8 * 4 * 2 * 3 * fewer);
}

TEST_F(BenchStep, TheLongestSequenceFillsTheMemory) {
  const std::vector<std::string> find = {"step", config(),         "--steps", "1",  "--warm-up",
                                         "0",    "--find-longest", "--unit",  "16", "--memory-gib",
                                         "0.02"};
  const Json json = run(find);
  const std::int64_t tokens = json["seq_len"];
  EXPECT_EQ(tokens % 16, 0);
  EXPECT_GT(tokens, 96);
  EXPECT_EQ(json["tokens"], tokens);
  const double available = 0.02 * (1 << 30);
  EXPECT_LE(json["estimated_bytes"].get<double>(), available);
  EXPECT_NEAR(json["memory_bytes"].get<double>() / available, 1, 0.1);
  // One more does not fit.
  const Json more = run({"step", config(), "--steps", "1", "--warm-up", "0", "--set",
                         "training.seq_len=" + std::to_string(tokens + 16), "--set",
                         "training.tokens_per_step=" + std::to_string(tokens + 16)});
  EXPECT_GT(more["estimated_bytes"].get<double>(), available);
}

TEST_F(BenchStep, WhatCannotBeTimedIsRefused) {
  const auto refused = [&](std::vector<std::string> more, int code, const std::string& why) {
    more.insert(more.begin(), {"step", config()});
    const test::ProcessResult result = bench(more);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_NE(result.err.find(why), std::string::npos) << result.err;
  };
  refused({"--find-longest", "--memory-gib", "0.00001"}, 71,
          "no sequence fits: one of 1,024 tokens");
  refused({"--set", "model.head_dim=7"}, 78, "model.head_dim");
  std::string text = kStep;
  text.erase(text.find("vocab_size"), std::string("vocab_size = 101\n").size());
  write(text);
  refused({}, 78, "model.vocab_size is not given");
}

}  // namespace
}  // namespace longhaul::launch
