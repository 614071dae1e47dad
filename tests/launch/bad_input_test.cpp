// What the real program says to wrong configurations, corpora, checkpoints and launches: exit code,
// place, remedy, and that it wrote nothing.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <sstream>

#include "runtime/io/hdf5.h"
#include "tests/support/refusal.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;
namespace hdf5 = runtime::hdf5;

<<<<<<< HEAD
// Tests may themselves run under a launcher; the program must not think that it does.
const std::vector<std::string> kLauncherNames = {
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK",     "PMI_SIZE",
    "SLURM_PROCID",         "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Every path below a folder, with sizes and times of change.
std::set<std::string> listing(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const auto time = std::to_string(entry.last_write_time().time_since_epoch().count());
    names.insert(entry.path().string() + " " + time + " " +
                 std::to_string(entry.is_regular_file() ? entry.file_size() : 0));
  }
  return names;
}

=======
>>>>>>> faults
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
     {{"16:27: ", "context_parallel_scheme = \"wring\"", "\"ring\""}}},
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
    // Several at once, in the order of the file.
    {{{4, "hidden_sise = 16"},
      {6, "num_hidden_layers = 0"},
      {9, "corpus = \"absent.h5\""},
      {13, "tokens_per_step = 100"},
      {16, "context_paralel_degree = 4"},
      {18, "lr = true"}},
     {{"4:1: ", "did you mean 'hidden_size'?"},
      {"6:21: ", "model.num_hidden_layers = 0"},
      {"9:10: ", "no such file"},
      {"13:19: ", "legal nearby: 64, 128"},
      {"16:1: ", "did you mean 'context_parallel_degree'?"},
      {"18:6: ", "optimizer.lr = true", "got a boolean"}}},
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
<<<<<<< HEAD
  ProcessResult longhaul(const std::vector<std::string>& arguments,
                         const std::map<std::string, std::string>& environment = {}) const {
    return run_longhaul(arguments, options(environment));
  }
  ProcessResult mpirun(int ranks, const std::vector<std::string>& arguments) const {
    return run_process(mpirun_command(ranks, arguments), options({}));
  }
  /// The run fails with this code, says all parts, and changes nothing in the folder.
  void expect_refused(int code, const std::vector<std::string>& parts,
                      const std::vector<std::string>& arguments,
                      const std::map<std::string, std::string>& environment = {}) const {
    const auto before = listing(folder_.path());
    const ProcessResult result = longhaul(arguments, environment);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_LT(result.seconds, 5);
    EXPECT_EQ(result.out, "");
    for (const std::string& part : parts)
      EXPECT_TRUE(has(result.err, part)) << "lacks " << part << "\n" << result.err;
    EXPECT_EQ(listing(folder_.path()), before);
  }

  TempDirectory folder_;

 private:
  ProcessOptions options(const std::map<std::string, std::string>& environment) const {
    ProcessOptions options;
    options.environment = environment;
    options.unset = kLauncherNames;
    options.directory = folder_.path();
    return options;
  }
=======
>>>>>>> faults
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
    expect_refused(78, {"model.vocab_size = 60", "corpus.h5", "61"},
                   {verb, "run.toml", "--set", "model.vocab_size=60"});
    expect_refused(78, {"training.seq_len is 4096", "3000 tokens"},
                   {verb, "run.toml", "--set", "training.seq_len=4096", "--set",
                    "training.tokens_per_step=4096"});
    expect_refused(78, {"comm.backend = \"nccl\"", "use \"mpi\""},
                   {verb, "run.toml", "--set", "comm.backend=nccl"});
    expect_refused(78, {"absent.toml", "cannot be read"}, {verb, "absent.toml"});
  }
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
  EXPECT_FALSE(fs::exists(path("out/metrics.jsonl")));
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
  ASSERT_EQ(longhaul({"train", "run.toml"}).exit_code, 0);
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
  EXPECT_TRUE(has(other.err, "debug.seed 1, this run has 2")) << other.err;
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
  expect_refused(69, {"srun started 4 processes, but MPI sees 1", "--mpi=pmix", "mpirun -np 4"},
                 {"train", "run.toml"},
                 {{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}});
}

<<<<<<< HEAD
/// Cases of `longhaul attention`, damaged one way at a time.
class BadAttentionTest : public BadInputTest {
 protected:
  static constexpr std::int64_t kBatch = 2, kTokens = 12, kHeads = 2, kDim = 4;

  template <class T>
  using Data = std::pair<hdf5::Extents, std::vector<T>>;
  struct Case {
    std::map<std::string, Data<float>> floats;
    std::map<std::string, Data<std::int64_t>> integers;
    std::map<std::string, Data<double>> doubles = {};
  };

  static Data<float> zeros(const hdf5::Extents& sizes) {
    std::int64_t elements = 1;
    for (const std::int64_t size : sizes) elements *= size;
    return {sizes, std::vector<float>(static_cast<std::size_t>(elements))};
  }
  static Case good() {
    Case right;
    for (const char* name : {"q", "k", "v", "dout"})
      right.floats[name] = zeros({kBatch, kTokens, kHeads, kDim});
    right.integers["documents"] = {{3}, {0, 5, 12}};
    right.integers["slices"] = {{2, 5}, {0, 6, 0, 6, 1, 6, 12, 0, 12, 1}};
    return right;
  }
  void write(const Case& which) const {
    fs::remove(path("case.h5"));
    hdf5::File file = hdf5::File::create(path("case.h5"));
    const auto write_all = [&]<class T>(const std::map<std::string, Data<T>>& datasets) {
      for (const auto& [name, data] : datasets) file.write<T>(name, data.first, data.second);
    };
    write_all(which.floats);
    write_all(which.integers);
    write_all(which.doubles);
    file.close();
  }
  static std::vector<std::string> replay(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"attention", "case.h5", "--output", "result.h5"};
    if (std::ranges::find(more, "--communicator") == more.end())
      arguments.insert(arguments.end(), {"--communicator", "loopback"});
    if (std::ranges::find(more, "--ranks") == more.end())
      arguments.insert(arguments.end(), {"--ranks", "3"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
};

TEST_F(BadAttentionTest, MalformedCasesAreDataErrors) {
  write(good());
  for (const char* mask : {"full", "causal", "documents", "slices"}) {
    const ProcessResult result = longhaul(replay({"--mask", mask}));
    EXPECT_EQ(result.exit_code, 0) << mask << result.err;
  }
  fs::remove(path("result.h5"));
  struct Malformed {
    const char* what;
    const char* mask;
    std::function<void(Case&)> damage;
    std::vector<std::string> parts;
  };
  const std::vector<Malformed> cases = {
      {"no q", "full", [](Case& c) { c.floats.erase("q"); }, {"'q'"}},
      {"no v", "full", [](Case& c) { c.floats.erase("v"); }, {"'v'"}},
      {"rank 3",
       "full",
       [](Case& c) {
         c.floats["k"] = zeros({kTokens, kHeads, kDim});
       },
       {"'k'"}},
      {"float64",
       "full",
       [](Case& c) {
         c.floats.erase("q");
         c.doubles["q"] = {{1, 1, 1, 1}, {0}};
       },
       {"'q'", "float64"}},
      {"k of another length",
       "full",
       [](Case& c) {
         c.floats["k"] = zeros({kBatch, 11, kHeads, kDim});
       },
       {"'k'", "11", "12"}},
      {"v of another batch",
       "full",
       [](Case& c) {
         c.floats["v"] = zeros({1, kTokens, kHeads, kDim});
       },
       {"'v'"}},
      {"k of another dim",
       "full",
       [](Case& c) {
         c.floats["k"] = zeros({kBatch, kTokens, kHeads, 3});
       },
       {"'k'"}},
      {"heads that do not divide",
       "full",
       [](Case& c) {
         c.floats["k"] = c.floats["v"] = zeros({kBatch, kTokens, 3, kDim});
       },
       {"2 query heads over 3"}},
      {"dout of another size",
       "full",
       [](Case& c) {
         c.floats["dout"] = zeros({kBatch, kTokens, 1, kDim});
       },
       {"'dout'"}},
      {"no documents",
       "documents",
       [](Case& c) { c.integers.erase("documents"); },
       {"'documents'"}},
      {"documents end early",
       "documents",
       [](Case& c) {
         c.integers["documents"].second = {0, 5, 11};
       },
       {"'documents'", "11", "12"}},
      {"documents begin late",
       "documents",
       [](Case& c) {
         c.integers["documents"].second = {1, 5, 12};
       },
       {"document"}},
      {"documents decrease",
       "documents",
       [](Case& c) {
         c.integers["documents"] = {{4}, {0, 7, 5, 12}};
       },
       {"document"}},
      {"no document",
       "documents",
       [](Case& c) {
         c.integers["documents"] = {{0}, {}};
       },
       {"'documents'"}},
      {"documents of rank 2",
       "documents",
       [](Case& c) {
         c.integers["documents"].first = {3, 1};
       },
       {"'documents'"}},
      {"no slices", "slices", [](Case& c) { c.integers.erase("slices"); }, {"'slices'"}},
      {"four columns",
       "slices",
       [](Case& c) {
         c.integers["slices"] = {{1, 4}, {0, 6, 0, 6}};
       },
       {"'slices'", "5"}},
      {"type 7",
       "slices",
       [](Case& c) { c.integers["slices"].second[9] = 7; },
       {"'slices'", "row 1", "type 7"}},
      {"type -1",
       "slices",
       [](Case& c) { c.integers["slices"].second[4] = -1; },
       {"'slices'", "row 0", "type -1"}},
      {"past the end",
       "slices",
       [](Case& c) { c.integers["slices"].second[6] = 13; },
       {"'slices'", "row 1", "13"}},
      {"backwards",
       "slices",
       [](Case& c) { c.integers["slices"].second[0] = 7; },
       {"'slices'", "row 0"}},
      {"overlapping", "slices", [](Case& c) { c.integers["slices"].second[5] = 3; }, {"overlap"}},
  };
  for (const Malformed& malformed : cases) {
    SCOPED_TRACE(malformed.what);
    Case which = good();
    malformed.damage(which);
    write(which);
    std::vector<std::string> parts = malformed.parts;
    parts.push_back("case.h5");
    expect_refused(65, parts, replay({"--mask", malformed.mask}));
  }
  write_text(path("case.h5"), "not an HDF5 file");
  expect_refused(65, {"case.h5"}, replay());
}

TEST_F(BadAttentionTest, IllegalCombinationsAreConfigurationErrors) {
  write(good());
  const std::vector<std::pair<std::vector<std::string>, std::string>> illegal = {
      {{"--scheme", "wring"}, "ring"},
      {{"--layout", "zigzack"}, "contiguous, zigzag"},
      {{"--mask", "document"}, "full, causal, documents or slices"},
      {{"--dtype", "float16"}, "float16"},
      {{"--dtype", "float64"}, "float32 or bfloat16"},
      {{"--wire-dtype", "int8"}, "int8"},
      {{"--communicator", "tcp"}, "mpi, loopback or nccl"},
      {{"--communicator", "nccl"}, "--device cuda"},
      {{"--device", "tpu"}, "cpu or cuda"},
  };
  for (const auto& [arguments, part] : illegal) {
    SCOPED_TRACE(arguments[1]);
    expect_refused(78, {part}, replay(arguments));
  }
  expect_refused(64, {"--ranks"}, replay({"--ranks", "0"}));
}

TEST_F(BadAttentionTest, RanksThatMpirunDidNotStart) {
  write(good());
  const ProcessResult result =
      mpirun(3, {"attention", "case.h5", "--output", "result.h5", "--ranks", "2"});
  EXPECT_EQ(result.exit_code, 69) << result.err;
  EXPECT_TRUE(has(result.err, "mpirun -np 2")) << result.err;
  EXPECT_FALSE(fs::exists(path("result.h5")));
}

=======
>>>>>>> faults
}  // namespace
}  // namespace longhaul::test
