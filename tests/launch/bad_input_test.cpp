// What the real program says to wrong configurations, corpora, checkpoints and launches: exit code,
// place, remedy, and that it wrote nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <sstream>

#include "runtime/io/corpus.h"
#include "runtime/io/hdf5.h"
#include "tests/support/refusal.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;
namespace hdf5 = runtime::hdf5;

// A right configuration, line by line: the cases replace lines of it.
const std::vector<std::string> kLines = {
    "[job]",                         // 1
    "output_dir = \"out\"",          // 2
    "[model]",                       // 3
    "hidden_size = 16",              // 4
    "intermediate_size = 32",        // 5
    "num_hidden_layers = 1",         // 6
    "num_attention_heads = 2",       // 7
    "[data]",                        // 8
    "corpus = \"corpus.h5\"",        // 9
    "mask = \"documents\"",          // 10
    "[training]",                    // 11
    "seq_len = 64",                  // 12
    "tokens_per_step = 256",         // 13
    "steps = 3",                     // 14
    "[parallelism]",                 // 15
    "context_parallel_degree = -1",  // 16
    "[optimizer]",                   // 17
    "lr = 1e-3",                     // 18
};

struct WrongConfig {
  std::map<int, std::string> replaced;
  std::vector<std::vector<std::string>>
      expected;  ///< a problem each: "line:column: ", then parts of its line
};

const std::vector<WrongConfig> kWrong = {
    {{{14, "stepps = 3"}},
     {{"14:1: ", "unknown key 'stepps' in [training]", "did you mean 'steps'?"}}},
    {{{11, "[trainning]"}}, {{"11:2: ", "unknown section [trainning]", "[training]"}}},
    {{{18, "lr = 1e-3\nseq_len = 64"}},
     {{"19:1: ", "unknown key 'seq_len' in [optimizer]", "it belongs in [training]"}}},
    {{{14, "steps = \"three\""}}, {{"14:9: ", "training.steps = \"three\"", "got a string"}}},
    {{{14, "steps = 3.5"}}, {{"14:9: ", "training.steps = 3.5", "got a float"}}},
    {{{2, "output_dir = 1"}}, {{"2:14: ", "job.output_dir = 1", "got an integer"}}},
    {{{14, "steps = 0"}}, {{"14:9: ", "training.steps = 0: expected an integer of at least 1"}}},
    {{{4, "hidden_size = -16"}}, {{"4:15: ", "model.hidden_size = -16"}}},
    {{{7, "num_attention_heads = 3"}},
     {{"4:15: ", "model.hidden_size = 16: expected a multiple of num_attention_heads = 3"}}},
    {{{7, "num_attention_heads = 2\nnum_key_value_heads = 4"}},
     {{"8:23: ", "expected a divisor of num_attention_heads = 2"}}},
    {{{9, "corpus = \"corpuss.h5\""}},
     {{"9:10: ", "data.corpus = \"corpuss.h5\": no such file", "longhaul tokenize"}}},
    {{{10, "mask = \"document\""}},
     {{"10:8: ", "data.mask = \"document\"", "did you mean \"documents\"?"}}},
    {{{16, "context_parallel_scheme = \"wring\""}},
     {{"16:27: ", "context_parallel_scheme = \"wring\"", "'ring'"}}},
    {{{16, "context_parallel_layout = \"zigzack\""}},
     {{"16:27: ", "context_parallel_layout = \"zigzack\"", "did you mean \"zigzag\"?"}}},
    {{{16, "context_parallel_wire_dtype = \"fp32\""}},
     {{"16:31: ", "one of \"float32\", \"bfloat16\""}}},
    {{{13, "tokens_per_step = 300"}},
     {{"13:19: ", "training.tokens_per_step = 300", "legal nearby: 256, 320"}}},
    {{{16, "data_parallel_replicate_degree = 3"}},
     {{"13:19: ", "= 64 * 1 * 3", "legal nearby: 192, 384"}}},
    {{{16, "tensor_parallel_degree = 2"}},
     {{"16:26: ", "tensor_parallel_degree = 2: this axis is not built yet"}}},
    {{{16, "pipeline_parallel_degree = 2"}},
     {{"16:28: ", "pipeline_parallel_degree = 2: this axis is not built yet"}}},
    {{{16, "context_parallel_degree = 0"}}, {{"16:27: ", "context_parallel_degree = 0"}}},
    {{{18, "lr = -1.0"}}, {{"18:6: ", "optimizer.lr = -1.0: expected a number of at least 0"}}},
    {{{18, "name = \"adam\""}}, {{"18:8: ", "optimizer.name = \"adam\": expected \"adamw\""}}},
    {{{17, "[lr_scheduler]"}, {18, "warmup_steps = 4"}},
     {{"18:16: ", "expected at most training.steps = 3"}}},
    {{{17, "[checkpoint]"}, {18, "resume = \"newest\""}},
     {{"18:10: ", "checkpoint.resume = \"newest\""}}},
    {{{17, "[comm]"}, {18, "timeout_seconds = 0"}},
     {{"18:19: ", "comm.timeout_seconds = 0: expected a number above 0"}}},
    {{{17, "[activation_checkpoint]"}, {18, "mode = \"some\""}},
     {{"18:8: ", "activation_checkpoint.mode = \"some\""}}},
    {{{14, ""}}, {{"11:2: ", "missing key 'steps' in [training]"}}},
    {{{8, ""}, {9, ""}, {10, ""}}, {{"1:1: ", "missing key 'corpus' in [data]"}}},
    {{{15, "[training]"}}, {{"15:", "training"}}},
    {{{12, "seq_len = "}}, {{"12:"}}},
    {{{9, "corpus = \"corpus.h5"}}, {{"9:"}}},
    // Schemes are expressions.
    {{{16,
       "context_parallel_scheme = \"wring\"\n"
       "context_parallel_layout = \"zigzack\"\ncontext_parallel_switch = \"2:burst,3:rign\""}},
     {{"16:27: ",
       "context_parallel_scheme = \"wring\": scheme 'wring', character 1: unknown scheme",
       "expected ring, burst, ", "did you mean 'ring'?"},
      {"17:27: ", "context_parallel_layout = \"zigzack\": expected one of \"contiguous\""},
      {"18:27: ",
       "context_parallel_switch = \"2:burst,3:rign\": step 3: scheme 'rign', character 1",
       "expected ring, burst"}}},
    {{{16,
       "context_parallel_scheme = \"double_ring(outr=2)\"\n"
       "context_parallel_switch = \"2:usp(heads=2,around=burst(backward=ring)),3:ring(outer=1)\""}},
     {{"16:27: ",
       "scheme 'double_ring(outr=2)', character 13: double_ring has no argument 'outr'; ",
       "it takes outer, inner or backward; did you mean 'outer'?"},
      {"17:27: ", "step 2: scheme 'usp(heads=2,around=burst(backward=ring))', character 26: ",
       "burst takes no arguments"},
      {"17:27: ", "step 3: scheme 'ring(outer=1)', character 6: ring takes no arguments"}}},
    {{{16, "context_parallel_switch = \"2:ring,burst,2:auto,4:auto\""}},
     {{"16:27: ", "'burst' is no STEP:SCHEME; expected, for example, \"5:burst"},
      {"16:27: ", "'2:auto': expected a step above 2 and up to training.steps = 3"},
      {"16:27: ", "'4:auto': expected a step above 2 and up to training.steps = 3"}}},
    {{{16, "context_parallel_switch = \"burst\""}, {14, "steps = 0"}},
     {{"14:9: ", "training.steps = 0"}, {"16:27: ", "'burst' is no STEP:SCHEME"}}},
    // What schemes took before they were expressions.
    {{{16,
       "context_parallel_degrees = \"inner=2\"\ncontext_parallel_nesting = \"ring_inside\"\n"
       "context_parallel_around = \"double_ring\"\ncontext_parallel_backward = \"burst\""}},
     {{"16:28: ",
       "context_parallel_degrees = \"inner=2\": a scheme is an expression now; remove it"},
      {"17:28: ", "context_parallel_nesting = \"ring_inside\": a scheme is an expression now"},
      {"18:27: ", "context_parallel_around = \"double_ring\": a scheme is an expression now"},
      {"19:29: ", "context_parallel_backward = \"burst\": a scheme is an expression now"}}},
    {{{16,
       "context_parallel_scheme = \"double_ring\"\ncontext_parallel_degrees = \"inner=2,outer=2\"\n"
       "context_parallel_backward = \"burst\""}},
     {{"17:28: ",
       "write context_parallel_scheme = \"double_ring(outer=2, inner=2, backward=burst)\" instead"},
      {"18:29: ",
       "write context_parallel_scheme = \"double_ring(outer=2, inner=2, backward=burst)\" "
       "instead"}}},
    {{{16,
       "context_parallel_scheme = \"usp\"\ncontext_parallel_switch = \"2:double_ring,3:burst\"\n"
       "context_parallel_degrees = \"outer=2,inner=4\"\ncontext_parallel_around = \"double_ring\"\n"
       "context_parallel_backward = \"ring\""}},
     {{"18:28: ",
       "write context_parallel_scheme = \"usp(heads=4, around=double_ring(backward=ring))\" and "
       "context_parallel_switch = \"2:double_ring(outer=2, inner=4, backward=ring),3:burst\""},
      {"19:27: ", "usp(heads=4, around=double_ring(backward=ring))"},
      {"20:29: ", "usp(heads=4, around=double_ring(backward=ring))"}}},
    {{{16, "context_parallel_scheme = \"double_ring\"\ncontext_parallel_degrees = \"outer=two\""}},
     {{"17:28: ",
       "write, for example, context_parallel_scheme = \"double_ring(outer=2, inner=4)\""}}},
    {{{16, "context_parallel_scheme = \"balanced_ring\""}},
     {{"16:27: ", "context_parallel_scheme = \"balanced_ring\": balanced_ring balances",
       "use layout contiguous"}}},
    {{{16, "context_parallel_switch = \"2:balanced_ring,3:ring\""}},
     {{"16:27: ",
       "context_parallel_switch = \"2:balanced_ring,3:ring\": balanced_ring from step 2: ",
       "use layout contiguous"}}},
    {{{10, "mask = \"document\""},
      {16,
       "context_parallel_degree = 4\ncontext_parallel_scheme = \"ulysses\"\n"
       "context_parallel_switch = \"2:double_ring(outer=3, inner=2),3:usp\""}},
     {{"10:8: ", "data.mask = \"document\""},
      {"17:27: ", "context_parallel_scheme = \"ulysses\": 4 ranks cannot share 2 query heads",
       "use 2 ranks, scheme usp or scheme ring"},
      {"18:27: ",
       "context_parallel_switch = \"2:double_ring(outer=3, inner=2),3:usp\": double_ring(outer=3, "
       "inner=2) from step 2: ",
       "does not make up 4 ranks; use scheme double_ring(outer=4, inner=1), scheme "
       "double_ring(outer=2, inner=2) or scheme double_ring(outer=1, inner=4)"}}},
    // Several at once, in the order of the file.
    {{{4, "hidden_sise = 16"},
      {6, "num_hidden_layers = 0"},
      {9, "corpus = \"absent.h5\""},
      {13, "tokens_per_step = 100"},
      {16, "context_paralel_degree = 4\ncontext_parallel_scheme = \"balanced_ring\""},
      {18, "lr = true"}},
     {{"4:1: ", "did you mean 'hidden_size'?"},
      {"6:21: ", "model.num_hidden_layers = 0"},
      {"9:10: ", "no such file"},
      {"13:19: ", "legal nearby: 64, 128"},
      {"16:1: ", "did you mean 'context_parallel_degree'?"},
      {"17:27: ", "balanced_ring", "layout contiguous"},
      {"19:6: ", "optimizer.lr = true", "got a boolean"}}},
};

class BadInputTest : public RefusalTest {
 protected:
  BadInputTest() { write_random_corpus(path("corpus.h5"), 3000, 61, 1); }

  void write_config(const std::map<int, std::string>& replaced) const {
    std::string text;
    for (std::size_t i = 0; i < kLines.size(); ++i) {
      const auto found = replaced.find(static_cast<int>(i + 1));
      text += (found != replaced.end() ? found->second : kLines[i]) + "\n";
    }
    folder_.write("run.toml", text);
  }
};

TEST_F(BadInputTest, WrongConfigurationsAreReportedWithEveryProblemAndNothingIsWritten) {
  EXPECT_GE(kWrong.size(), 20u);
  for (const WrongConfig& wrong : kWrong) {
    SCOPED_TRACE(wrong.replaced.begin()->second);
    write_config(wrong.replaced);
    const auto before = listing(folder_.path());
    const ProcessResult result = longhaul({"train", "run.toml"});
    EXPECT_EQ(result.exit_code, 78) << result.err;
    EXPECT_EQ(result.out, "");
    std::vector<std::string> lines;
    std::istringstream text(result.err);
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    ASSERT_EQ(lines.size(), wrong.expected.size() + 1) << result.err;
    for (std::size_t i = 0; i < wrong.expected.size(); ++i) {
      EXPECT_TRUE(lines[i + 1].starts_with("run.toml:" + wrong.expected[i][0]))
          << lines[i + 1] << "\nexpected " << wrong.expected[i][0];
      for (const std::string& part : wrong.expected[i])
        EXPECT_TRUE(has(lines[i + 1], part)) << lines[i + 1] << "\nlacks " << part;
    }
    EXPECT_EQ(listing(folder_.path()), before);
    const ProcessResult validated = longhaul({"validate", "run.toml"});
    EXPECT_EQ(validated.exit_code, 78);
    EXPECT_EQ(validated.err, result.err);
  }
}

TEST_F(BadInputTest, ConfigurationsThatContradictTheCorpusOrTheProgram) {
  write_config({});
  EXPECT_EQ(longhaul({"validate", "run.toml"}).exit_code, 0);
  for (const char* verb : {"train", "validate"}) {
    expect_refused(78,
                   {"2 problems",
                    "--set model.vocab_size=60: model.vocab_size = 60: expected at "
                    "least 61, the vocabulary of corpus.h5",
                    "--set training.seq_len=4096: training.seq_len = 4096: expected at most 3000, "
                    "the tokens of corpus.h5"},
                   {verb, "run.toml", "--set", "model.vocab_size=60", "--set",
                    "training.seq_len=4096", "--set", "training.tokens_per_step=4096"});
    expect_refused(78, {"comm.backend = \"nccl\"", "use \"mpi\""},
                   {verb, "run.toml", "--set", "comm.backend=nccl"});
    expect_refused(78, {"absent.toml", "cannot be read"}, {verb, "absent.toml"});
  }
}

TEST_F(BadInputTest, ValidationThatCannotBe) {
  write_config({});
  write_random_corpus(path("held_out.h5"), 900, 61, 3);
  write_random_corpus(path("other.h5"), 900, 60, 3);
  write_random_corpus(path("short.h5"), 63, 61, 3);
  runtime::CorpusWriter renamed(path("renamed.h5"), 61, "sentencepiece:a.model:00ff");
  renamed.append(std::vector<std::int32_t>(900, 1));
  renamed.end_document();
  renamed.finish();
  write_text(path("text.h5"), "not an HDF5 file");
  for (const char* verb : {"validate", "train"}) {
    SCOPED_TRACE(verb);
    const auto refused = [&](int code, const std::vector<std::string>& parts,
                             const std::vector<std::string>& sets) {
      std::vector<std::string> arguments = {verb, "run.toml", "--set", "validation.enable=true"};
      for (const std::string& set : sets) arguments.insert(arguments.end(), {"--set", set});
      expect_refused(code, parts, arguments);
    };
    refused(78, {"validation.enable = true: this needs validation.corpus"}, {});
    refused(78, {"validation.corpus = \"absent.h5\": no such file", "tokenize"},
            {"validation.corpus=absent.h5"});
    refused(65, {"text.h5"}, {"validation.corpus=text.h5"});
    refused(
        78,
        {"--set validation.corpus=other.h5: validation.corpus = \"other.h5\": its tokens are of "
         "tokenizer bytes with 60 ids, those of corpus.h5 of bytes with 61"},
        {"validation.corpus=other.h5"});
    refused(78, {"tokenizer sentencepiece:a.model:00ff with 61 ids"},
            {"validation.corpus=renamed.h5"});
    refused(78, {"expected at least training.seq_len = 64 tokens, it holds 63"},
            {"validation.corpus=short.h5"});
    refused(
        78,
        {"validation.steps = 4: held_out.h5 holds 900 tokens, and a step takes tokens_per_step = "
         "256; expected at most 3, or -1 for the whole corpus"},
        {"validation.corpus=held_out.h5", "validation.steps=4"});
    refused(
        78, {"tokens_per_step = 1024; expected -1 for the whole corpus"},
        {"validation.corpus=held_out.h5", "validation.steps=1", "training.tokens_per_step=1024"});
    refused(78, {"validation.freq = 0"}, {"validation.corpus=held_out.h5", "validation.freq=0"});
    refused(78, {"validation.steps = 0", "or -1"},
            {"validation.corpus=held_out.h5", "validation.steps=0"});
  }
  const ProcessResult said =
      longhaul({"validate", "run.toml", "--set", "validation.enable=true", "--set",
                "validation.corpus=held_out.h5", "--set", "validation.steps=3"});
  EXPECT_EQ(said.exit_code, 0) << said.err;
  EXPECT_TRUE(has(said.out,
                  "# validation  every 10 steps and after the last: 12 sequences, 768 of "
                  "900 tokens of held_out.h5\n"))
      << said.out;
  const ProcessResult one =
      longhaul({"validate", "run.toml", "--set", "validation.enable=true", "--set",
                "validation.corpus=held_out.h5", "--set", "validation.steps=1", "--set",
                "validation.freq=1", "--set", "training.tokens_per_step=64"});
  EXPECT_TRUE(has(one.out, "# validation  every step and after the last: 1 sequence, 64 of 900 "))
      << one.out << one.err;
  EXPECT_EQ(longhaul({"validate", "run.toml", "--set", "validation.corpus=absent.h5"}).exit_code, 0)
      << "not enabled";
}

TEST_F(BadInputTest, SchemesThatSuitTheConfigurationButNotTheRanksStarted) {
  write_config({{16,
                 "context_parallel_scheme = \"double_ring(outer=2, inner=2)\"\n"
                 "context_parallel_switch = \"2:ulysses\""}});
  EXPECT_EQ(longhaul({"validate", "run.toml"}).exit_code, 0);
  const std::vector<std::string> expected{
      "2 problems in the configuration run.toml:",
      "run.toml:16:27: parallelism.context_parallel_scheme = \"double_ring(outer=2, inner=2)\": ",
      "does not make up 3 ranks; use scheme double_ring(outer=3, inner=1)",
      "run.toml:17:27: parallelism.context_parallel_switch = \"2:ulysses\": ulysses from step 2: ",
      "3 ranks cannot share 2 query heads"};
  expect_refused(78, expected, {"validate", "run.toml", "--ranks", "3"});
  const auto before = listing(folder_.path());
  const ProcessResult three = mpirun(3, {"train", "run.toml"});
  EXPECT_EQ(three.exit_code, 78) << three.err;
  for (const std::string& part : expected) EXPECT_TRUE(has(three.err, part)) << three.err;
  EXPECT_EQ(listing(folder_.path()), before);
}

TEST_F(BadInputTest, WrongCommandLines) {
  write_config({});
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"train"},
                                                    {"train", "run.toml", "--sett", "a.b=1"},
                                                    {"train", "run.toml", "--set"},
                                                    {"trane", "run.toml"},
                                                    {"inspect"},
                                                    {"tokenize", "run.toml"},
                                                    {"attention", "case.h5"},
                                                    {"bench"}}) {
    SCOPED_TRACE(arguments.front());
    expect_refused(64, {"longhaul: error: ", "--help"}, arguments);
  }
}

TEST_F(BadInputTest, DamagedCorpora) {
  write_config({});
  const std::string good = read_text(path("corpus.h5"));
  const hdf5::DatasetInfo tokens = hdf5::File::open(path("corpus.h5")).dataset("tokens").info();
  const auto offset = static_cast<std::size_t>(tokens.file_offset);

  fs::resize_file(path("corpus.h5"), offset + 1000);
  for (const char* verb : {"train", "validate"})
    expect_refused(65, {"corpus.h5"}, {verb, "run.toml"});
  expect_refused(65, {"corpus.h5"}, {"inspect", "corpus.h5"});

  std::string bad = good;
  bad[offset + 777] = static_cast<char>(200);
  write_text(path("corpus.h5"), bad);
  const ProcessResult outside = longhaul({"train", "run.toml"});
  EXPECT_EQ(outside.exit_code, 65) << outside.err;
  for (const char* part : {"corpus.h5", "'tokens'", "777", "200", "61"})
    EXPECT_TRUE(has(outside.err, part)) << outside.err;
  // The damage shows when its block is read, before the first step: of that there is the header.
  const std::string metrics = read_text(path("out/metrics.jsonl"));
  EXPECT_EQ(std::ranges::count(metrics, '\n'), 1) << metrics;
  expect_refused(65, {"corpus.h5", "'tokens'", "777", "200"}, {"inspect", "corpus.h5"});

  bad[offset + 777] =
      static_cast<char>(good[offset + 777] == 5 ? 6 : 5);  // inside the vocabulary: the hash tells
  write_text(path("corpus.h5"), bad);
  const ProcessResult flipped = longhaul({"train", "run.toml"});
  EXPECT_EQ(flipped.exit_code, 65) << flipped.err;
  EXPECT_TRUE(has(flipped.err, "'block_hashes'")) << flipped.err;

  write_text(path("corpus.h5"), "not an HDF5 file");
  expect_refused(65, {"corpus.h5"}, {"train", "run.toml"});
}

TEST_F(BadInputTest, DamagedCheckpoints) {
  write_config({});
  const ProcessResult trained = longhaul({"train", "run.toml"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const std::string checkpoint = path("out/checkpoints/step-00000003");
  ASSERT_TRUE(fs::is_directory(checkpoint));
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(checkpoint)) files.push_back(entry.path());
  ASSERT_GE(files.size(), 2u);
  for (const std::string& file : files) {
    SCOPED_TRACE(file);
    const std::string name = fs::path(file).filename();
    const std::string good = read_text(file);
    std::string flipped = good;
    flipped[good.size() / 2] = static_cast<char>(flipped[good.size() / 2] ^ 1);
    for (const std::string& bad : {flipped, good.substr(0, good.size() - 5), std::string()}) {
      write_text(file, bad);
      const ProcessResult result = longhaul({"train", "run.toml", "--set", "training.steps=5"});
      EXPECT_EQ(result.exit_code, 65) << result.err;
      EXPECT_TRUE(has(result.err, name)) << result.err;
      const ProcessResult inspected = longhaul({"inspect", "out/checkpoints/step-00000003"});
      EXPECT_EQ(inspected.exit_code, 65) << inspected.err;
      EXPECT_TRUE(has(inspected.err, name)) << inspected.err;
    }
    write_text(file, good);
  }
  const std::string moved = path("rank-file");
  fs::rename(files.front(), moved);
  EXPECT_EQ(longhaul({"train", "run.toml", "--set", "training.steps=5"}).exit_code, 65);
  fs::rename(moved, files.front());
  const ProcessResult resumed = longhaul({"train", "run.toml", "--set", "training.steps=5"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  const ProcessResult other =
      longhaul({"train", "run.toml", "--set", "training.steps=7", "--set", "debug.seed=2"});
  EXPECT_EQ(other.exit_code, 78) << other.err;
  EXPECT_TRUE(has(other.err, "debug.seed = 2: the checkpoint was made with 1")) << other.err;
}

TEST(BadInput, ACorpusThatIsCutUnderARunEndsItNamingTheFile) {
  const TrainingJob job;
  Process run({longhaul_program(), "train", job.config(), "--set", "training.steps=1000000",
               "--set", "lr_scheduler.warmup_steps=0", "--set", "comm.backend=loopback", "--set",
               "parallelism.context_parallel_degree=2"});
  EXPECT_TRUE(wait_until([&] { return !run.running() || job.steps("out").size() >= 3; }, 50));
  fs::resize_file(job.corpus(), 0);
  const ProcessResult result = run.wait();
  EXPECT_EQ(result.exit_code, 65) << result.err;
  EXPECT_TRUE(has(result.err, job.corpus() + ": became shorter while it was in use")) << result.err;
}

TEST_F(BadInputTest, RanksThatDoNotFitTheGrid) {
  write_config({{16, "context_parallel_degree = 2"}});
  const auto before = listing(folder_.path());
  const ProcessResult three = mpirun(3, {"train", "run.toml"});
  EXPECT_EQ(three.exit_code, 69) << three.err;
  for (const char* part : {"context 2 = 2 ranks, but there are 3", "start 2",
                           "parallelism.context_parallel_degree to 3 or -1"}) {
    EXPECT_TRUE(has(three.err, part)) << three.err;
  }
  EXPECT_EQ(listing(folder_.path()), before);
  expect_refused(69, {"but there is 1; start 2"}, {"train", "run.toml"});
  const ProcessResult threads = mpirun(2, {"train", "run.toml", "--set", "comm.backend=loopback"});
  EXPECT_EQ(threads.exit_code, 69) << threads.err;
  EXPECT_TRUE(has(threads.err, "start it without mpirun, or set comm.backend = \"mpi\""))
      << threads.err;
  EXPECT_EQ(listing(folder_.path()), before);
}

TEST_F(BadInputTest, OneRankEachWhereSlurmStartedFour) {
  write_config({});
  expect_refused(
      69,
      {"srun started 4 tasks without PMIx, so MPI would see 1 rank", "--mpi=pmix", "mpirun -np 4"},
      {"train", "run.toml"},
      {{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}});
}

}  // namespace
}  // namespace longhaul::test
