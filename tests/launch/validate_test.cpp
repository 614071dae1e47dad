#include "launch/validate.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/error.h"
#include "runtime/io/corpus.h"
#include "tests/support/process.h"

namespace longhaul::launch {
namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class ValidateTest : public testing::Test {
 protected:
  // The corpus is /dev/null's neighbour: a regular file is all that these tests need, unless a room
  // reads it.
  ValidateTest() {
    config_ = folder_.write(
        "run.toml", "[job]\noutput_dir = \"" + folder_.file("out") +
                        "\"\n[model]\nhidden_size = 192\nintermediate_size = 512\n"
                        "num_hidden_layers = 4\nnum_attention_heads = 6\nnum_key_value_heads = 2\n"
                        "vocab_size = 256\n[data]\ncorpus = \"" +
                        corpus() +
                        "\"\n[training]\nseq_len = 4096\ntokens_per_step = 16384\nsteps = 100\n");
  }
  std::string corpus() const {
    runtime::CorpusWriter writer(folder_.file("corpus.h5"), 256, "bytes");
    const std::vector<std::int32_t> tokens(4096, 1);
    writer.append(tokens);
    writer.end_document();
    writer.finish();
    return folder_.file("corpus.h5");
  }
  test::ProcessResult validate(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"validate", config_});
    return test::run_longhaul(arguments);
  }
  test::TempDirectory folder_;
  std::string config_;
};

TEST_F(ValidateTest, NamesTheSchemesThatRun) {
  const std::string key = "parallelism.context_parallel_";
  const auto told = validate({"--ranks", "8", "--set", key + "layout=striped", "--set",
                              key + "scheme=usp(around = double_ring(backward=burst), heads=2)",
                              "--set", key + "switch=5:auto, 7:double_ring(inner=2),9:burst"});
  ASSERT_EQ(told.exit_code, 0) << told.err;
  EXPECT_TRUE(has(told.out,
                  "# attention   usp(heads=2, around=double_ring(outer=2, inner=2, "
                  "backward=burst)), from step 5 ring (chosen by auto), from step 7 "
                  "double_ring(outer=4, inner=2), from step 9 burst over striped"))
      << told.out;
  // The configuration keeps what was asked for, in canonical form.
  EXPECT_TRUE(has(told.out, "scheme = \"usp(heads=2, around=double_ring(backward=burst))\"\n"))
      << told.out;
  EXPECT_TRUE(has(told.out, "switch = \"5:auto,7:double_ring(inner=2),9:burst\"\n")) << told.out;
  // As many key/value heads as query heads: burst sends fewer bytes.
  const auto chosen = validate({"--set", key + "scheme=auto", "--set", "training.dtype=bfloat16",
                                "--set", "model.num_key_value_heads=6"});
  ASSERT_EQ(chosen.exit_code, 0) << chosen.err;
  EXPECT_TRUE(has(chosen.out, "# attention   burst (chosen by auto) over zigzag")) << chosen.out;
}

TEST_F(ValidateTest, SaysWhatDocumentsPositionsAndLabelsResolveTo) {
  const auto told = [&](const std::vector<std::string>& settings) {
    std::vector<std::string> arguments;
    for (const std::string& setting : settings) {
      arguments.emplace_back("--set");
      arguments.push_back("data." + setting);
    }
    const auto result = validate(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  const std::string inside = "# documents   attention stays inside documents; positions ";
  std::string out = told({});
  EXPECT_TRUE(has(out, inside + "restart at each; labels stay inside\n")) << out;
  EXPECT_TRUE(has(out, "positions = \"document\"\n")) << out;
  out = told({"positions=sequence"});
  EXPECT_TRUE(has(out, inside + "run from 0 to seq_len - 1; labels stay inside\n")) << out;
  out = told({"mask=causal_window", "window=9"});
  EXPECT_TRUE(has(out,
                  "# documents   attention crosses documents; positions run from 0 to "
                  "seq_len - 1; labels cross\n"))
      << out;
  EXPECT_TRUE(has(out, "positions = \"sequence\"\n")) << out;
  out = told({"mask=causal", "positions=document"});
  EXPECT_TRUE(has(out,
                  "# documents   attention crosses documents; positions restart at each; "
                  "labels cross\n"))
      << out;
  out = told({"mask=shared_question", "prefix=8", "block=8"});
  EXPECT_TRUE(has(out, inside + "restart at each, those of an answer at its question's end; labels "
                                "stay inside answers\n"))
      << out;
}

TEST_F(ValidateTest, CountsActivationsAndLayers) {
  // By hand, a row and layer in float32: attention keeps 192 + (2 * 6 + 2 * 2) * 32 + 2 * 6 + 1
  // numbers, the rest 192 + 2 * 512 + 1; 2,048 rows a rank, 4 layers.
  const double layer = 2048.0 * 4 * (192 + 16 * 32 + 13 + 192 + 1024 + 1) / (1 << 20);
  const double input = 2048.0 * 4 * 192 / (1 << 20);
  const auto line = [&](double mebibytes, const std::string& what) {
    const std::string size = mebibytes < 102.4 ? fmt::format("{:.1f} MiB", mebibytes)
                                               : fmt::format("{:.2f} GiB", mebibytes / 1024);
    return fmt::format("# activations {} a rank, kept for backward: {}\n", size, what);
  };
  auto result = validate({"--ranks", "2"});
  EXPECT_TRUE(has(result.out, line(4 * layer, "one pass of 2,048 rows, recomputation none")))
      << result.out;
  EXPECT_TRUE(has(result.out, "# layers      4: 4 full_attention\n"));
  result = validate({"--ranks", "2", "--set", "training.interleave=2"});
  EXPECT_TRUE(
      has(result.out, line(8 * layer, "2 passes together of 2,048 rows, recomputation none")))
      << result.out;
  result = validate({"--ranks", "2", "--set", "training.interleave=2", "--set",
                     "activation_checkpoint.mode=full", "--set",
                     "model.layer_types=[\"sliding_attention\", \"full_attention\", "
                     "\"sliding_attention\", \"sliding_attention\"]",
                     "--set", "model.sliding_window=512"});
  EXPECT_TRUE(has(result.out, line(2 * (layer + 3 * input),
                                   "2 passes together of 2,048 rows, recomputation full")))
      << result.out;
  EXPECT_TRUE(
      has(result.out, "# layers      4: 3 sliding_attention (window 512), 1 full_attention\n"))
      << result.out;
  EXPECT_TRUE(has(result.out, "sliding_window = 512\n"));
}

TEST_F(ValidateTest, PrintsWhatItResolvesTo) {
  const auto result =
      validate({"--ranks", "4", "--set", "parallelism.data_parallel_replicate_degree=2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(has(result.out, "# grid        4 ranks: data 2 x context 2\n")) << result.out;
  EXPECT_TRUE(has(
      result.out,
      "16,384 tokens a step = 4 sequences of 4,096: 1 per pass on each of 2 data ranks, 2 passes"));
  EXPECT_TRUE(has(result.out, "context_parallel_degree = 2\n"));
  EXPECT_TRUE(has(result.out, "head_dim = 32\n"));
  EXPECT_TRUE(has(result.out, "legal"));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("out")));
  // What it prints is itself a configuration, and the same one.
  const std::string again = folder_.write("again.toml", result.out);
  const auto second = test::run_longhaul({"validate", again, "--ranks", "4"});
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_EQ(second.out.substr(second.out.find('\n')), result.out.substr(result.out.find('\n')));
}

TEST_F(ValidateTest, WithoutRanksTheGridStaysOpen) {
  const auto result = validate({});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(has(result.out, "whatever ranks are left"));
  EXPECT_TRUE(has(result.out, "context_parallel_degree = -1\n"));
}

TEST_F(ValidateTest, SaysWhatIsSharded) {
  // 1,672,896 parameters are 103 chunks of 16,384; a rank of four gets 26 at most.
  const std::string state = "# optimizer   adamw, 8 bytes of state a parameter";
  const auto whole = validate({"--ranks", "4"});
  EXPECT_TRUE(has(whole.out, state + ": 12.8 MiB on every rank\n")) << whole.out;
  const std::string sharded = "parallelism.shard=optimizer";
  const auto parts = validate({"--ranks", "4", "--set", sharded});
  EXPECT_TRUE(has(parts.out, state + ", sharded over 4 ranks: at most 3.2 MiB on each\n"))
      << parts.out;
  const auto open = validate({"--set", sharded});
  EXPECT_TRUE(has(open.out, state + ", sharded over all ranks\n")) << open.out;
  EXPECT_EQ(validate({"--set", "parallelism.shard=gradients"}).exit_code, 78);
}

TEST_F(ValidateTest, ReportsEveryProblem) {
  const auto result =
      validate({"--ranks", "3", "--set", "training.steps=0", "--set", "model.head_dim=7", "--set",
                "parallelism.context_parallel_degree=2", "--set", "optimizer.bta1=0.5"});
  EXPECT_EQ(result.exit_code, 78);
  EXPECT_EQ(result.out, "");
  for (const char* part :
       {"4 problems", "--set training.steps=0: ", "--set model.head_dim=7: ",
        "--set parallelism.context_parallel_degree=2: ", "did you mean 'beta1'?"}) {
    EXPECT_TRUE(has(result.err, part)) << part << "\n" << result.err;
  }
  EXPECT_FALSE(std::filesystem::exists(folder_.file("out")));
}

TEST_F(ValidateTest, RefusesWhatDoesNotRunWithReasons) {
  const auto result = validate({"--set", "comm.backend=nccl"});
  EXPECT_EQ(result.exit_code, 78);
  EXPECT_TRUE(has(result.err, "comm.backend = \"nccl\"")) << result.err;
  EXPECT_TRUE(has(result.err, "use \"mpi\" or \"loopback\"")) << result.err;
}

TEST_F(ValidateTest, KeysAreDocumentedFromTheSchema) {
  const auto result = test::run_longhaul({"validate", "--keys"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, config_reference());
}

}  // namespace
}  // namespace longhaul::launch
