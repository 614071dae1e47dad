// The program from outside: exit codes, streams, what it says.

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

#include "runtime/build_info.h"
#include "runtime/cpu_level.h"
#include "runtime/io/hdf5.h"
#include "tests/support/process.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

// Tests may themselves run under a launcher; the program must not think that it does.
const std::vector<std::string> kLauncherNames = {
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE",
    "SLURM_PROCID",         "SLURM_STEP_NUM_TASKS"};

ProcessResult longhaul(const std::vector<std::string>& arguments,
                       std::map<std::string, std::string> environment = {}) {
  ProcessOptions options;
  options.environment = std::move(environment);
  options.unset = kLauncherNames;
  return run_longhaul(arguments, options);
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Program, RefusesACpuLevelThatCannotBeHad) {
  const ProcessResult unknown = longhaul({"--version"}, {{"LONGHAUL_CPU_LEVEL", "avx513"}});
  EXPECT_EQ(unknown.exit_code, 69) << unknown.err;
  EXPECT_TRUE(has(unknown.err, "LONGHAUL_CPU_LEVEL is 'avx513'; expected avx2, avx512 or amx"))
      << unknown.err;
  if (runtime::best_cpu_level() == runtime::CpuLevel::amx)
    GTEST_SKIP() << "no level is above this machine's";
  const ProcessResult lacking = longhaul({"--version"}, {{"LONGHAUL_CPU_LEVEL", "amx"}});
  EXPECT_EQ(lacking.exit_code, 69) << lacking.err;
  EXPECT_TRUE(has(lacking.err, "at most")) << lacking.err;
}

TEST(Cli, HelpAndVersionSucceed) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--help"}, {"validate", "--help"}, {"-h"}}) {
    const ProcessResult result = longhaul(arguments);
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_TRUE(has(result.out, "Usage: longhaul")) << result.out;
    EXPECT_EQ(result.err, "");
  }
  const ProcessResult version = longhaul({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_TRUE(has(version.out, "longhaul " + runtime::build_info().version)) << version.out;
  EXPECT_TRUE(has(version.out, "build ")) << version.out;
}

TEST(Cli, WrongCommandLinesAreUsageErrors) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"trian"},
      {"--verson"},
      {"validate"},
      {"validate", "a.toml", "b.toml"},
      {"validate", "a.toml", "--unknown"},
      {"validate", "a.toml", "--set"},
      {"validate", "a.toml", "--ranks", "0"},
      {"validate", "a.toml", "--ranks", "-3"},
      {"validate", "a.toml", "--ranks", "many"},
      {"report"},
      {"validate", "a.toml", "report", "b"},
  };
  for (const auto& arguments : wrong) {
    std::string shown;
    for (const std::string& argument : arguments) shown += argument + " ";
    const ProcessResult result = longhaul(arguments);
    EXPECT_EQ(result.exit_code, 64) << shown << result.err;
    EXPECT_EQ(result.out, "") << shown;
    EXPECT_NE(result.err, "") << shown;
  }
  EXPECT_TRUE(has(longhaul({}).err, "Subcommands:"));
}

TEST(Cli, ErrorsComeOnceOnStderr) {
  const ProcessResult result = longhaul({"validate", "/nonexistent/run.toml"});
  EXPECT_EQ(result.exit_code, 78);
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(result.err.starts_with("longhaul: error: /nonexistent/run.toml: cannot be read"))
      << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
}

TEST(Cli, ErrorsNameTheRankAmongSeveral) {
  const TempDirectory folder;
  const std::string path = folder.write("run.toml", "[job]\n");
  const ProcessResult zero =
      longhaul({"validate", path}, {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "3"}});
  EXPECT_TRUE(zero.err.starts_with("longhaul: error: [rank 0] ")) << zero.err;
  EXPECT_GT(std::count(zero.err.begin(), zero.err.end(), '\n'), 5);
  const ProcessResult two =
      longhaul({"validate", path}, {{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "3"}});
  EXPECT_TRUE(two.err.starts_with("longhaul: error: [rank 2] ")) << two.err;
  EXPECT_TRUE(has(two.err, "rank 0 lists them all"));
  EXPECT_LE(std::count(two.err.begin(), two.err.end(), '\n'), 3);
  EXPECT_EQ(two.exit_code, 78);
  const ProcessResult alone =
      longhaul({"validate", path}, {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}});
  EXPECT_FALSE(has(alone.err, "[rank"));
}

/// A command line for every verb, that succeeds and prints; the files that they read are in
/// `folder`.
std::vector<std::vector<std::string>> every_verb(const TrainingJob& job) {
  const std::vector<std::string> sets = {
      "comm.backend=loopback", "parallelism.context_parallel_degree=1", "training.steps=1",
      "training.tokens_per_step=96", "lr_scheduler.warmup_steps=0"};
  std::vector<std::string> validate = job.train("run", sets);
  validate[0] = "validate";
  const std::string text = job.folder().write("text", "abc");
  const std::string input = job.folder().file("case.h5");
  {
    auto file = runtime::hdf5::File::create(input);
    for (const char* name : {"q", "k", "v"})
      file.write<float>(name, {1, 4, 1, 2}, std::vector<float>(8, 0.5f));
    file.close();
  }
  return {{"--help"},
          {"--version"},
          {"validate", "--help"},
          job.train("run", sets),
          validate,
          {"validate", "--keys"},
          {"validate", "--legality"},
          {"tokenize", text, "--force", "--output", job.folder().file("text.h5")},
          {"inspect", job.corpus()},
          {"report", job.output("run", "metrics.jsonl")},
          {"attention", input, "--force", "--output", job.folder().file("result.h5"),
           "--communicator", "loopback"},
          {"bench", "peak", "--seconds", "0.01", "--threads", "1", "--what", "units"},
          {"bench", "layouts", "--mask", "causal", "--seq-len", "64", "--ranks", "2"}};
}

TEST(Cli, OutputThatIsLostIsAnIoErrorOfEveryVerb) {
  const TrainingJob job;
  for (const std::vector<std::string>& arguments : every_verb(job)) {
    std::vector<std::string> command = {"bash", "-c", "", longhaul_program()};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const std::string shown = arguments[0] + (arguments.size() > 1 ? " " + arguments[1] : "");
    ProcessOptions options;
    options.unset = kLauncherNames;
    command[2] = "\"$0\" \"$@\"";
    EXPECT_EQ(run_process(command, options).exit_code, 0) << shown;
    for (const char* redirection : {"> /dev/full", ">&-", "<&- >&- 2>&-",
                                    // A pipe whose reader is gone when the program starts.
                                    "> >(exec true)"}) {
      command[2] = std::string(redirection).find(">(") == std::string::npos
                       ? "\"$0\" \"$@\" " + std::string(redirection)
                       : "exec 3> >(exec true); wait $!; exec \"$0\" \"$@\" >&3 3>&-";
      const ProcessResult result = run_process(command, options);
      EXPECT_EQ(result.exit_code, 74) << shown << " " << redirection << result.err;
      if (std::string(redirection).find("2>") == std::string::npos) {
        EXPECT_TRUE(has(result.err, "writing to standard output failed")) << result.err;
        EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
      }
    }
  }
  // Nothing that was printed went into a file which had taken the place of the closed output.
  EXPECT_EQ(longhaul({"inspect", job.folder().file("text.h5")}).exit_code, 0);
  EXPECT_EQ(longhaul({"inspect", job.corpus()}).exit_code, 0);
}

TEST(Cli, OneOfAKindIsToldInTheSingular) {
  const TrainingJob job;
  std::string all;
  for (const std::vector<std::string>& arguments : every_verb(job)) {
    if (arguments.back() == "--help" || arguments.back() == "--keys" ||
        arguments.back() == "--legality")
      continue;
    const ProcessResult result = longhaul(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    all += result.out;
  }
  std::smatch wrong;
  const std::regex plural(
      "[^0-9,.=x-]1 ([a-z/]+ )?(ranks|passes|layers|sequences|tokens|documents|steps|threads|hosts|"
      "nodes|rows|bytes|values|files|slices|heads)\\b");
  EXPECT_FALSE(std::regex_search(all, wrong, plural)) << wrong[0] << "\n" << all;
  for (const char* part :
       {"1 rank: data 1 x context 1", "1 sequence of 96", "each of 1 data rank, 1 pass",
        "1 pass of 1 on each data rank", "1 document, 3 tokens", "layers      2: "})
    EXPECT_TRUE(has(all, part)) << part << "\n" << all;
}

TEST(Cli, WrongVerbsAreAnsweredWithTheNearest) {
  struct Case {
    std::vector<std::string> arguments;
    const char* says;
  };
  for (const auto& [arguments, says] : std::initializer_list<Case>{
           {{"trian", "a.toml"}, "there is no verb 'trian'; did you mean 'train'?"},
           {{"resume", "a.toml"}, "there is no verb 'resume'; here it is 'train'"},
           {{"preprocess", "a"}, "there is no verb 'preprocess'; here it is 'tokenize'"},
           {{"evaluate"}, "there is no verb 'evaluate'; here it is 'eval'"},
           {{"bench", "layout"}, "there is no verb 'layout'; did you mean 'layouts'?"},
           {{"xxxxxxxxxx"}, "there is no verb 'xxxxxxxxxx'; expected one of train, eval, "}}) {
    const ProcessResult result = longhaul(arguments);
    EXPECT_EQ(result.exit_code, 64);
    EXPECT_TRUE(has(result.err, says)) << result.err;
  }
}

TEST(Cli, PathsThatNoShellHasExpanded) {
  const TempDirectory home;
  home.write("in", "abc");
  const std::map<std::string, std::string> environment = {{"HOME", home.path().string()},
                                                          {"LONGHAUL_TEST_EMPTY", ""}};
  EXPECT_EQ(longhaul({"tokenize", "~/in", "--output=$HOME/a.h5"}, environment).exit_code, 0);
  EXPECT_EQ(longhaul({"inspect", "${HOME}/a.h5"}, environment).exit_code, 0);
  EXPECT_EQ(longhaul({"tokenize", "~/in", "--output", "~/$$b.h5"}, environment).exit_code, 0);
  // What exists as it is written is not expanded.
  EXPECT_TRUE(std::filesystem::exists(home.file("$b.h5")));
  EXPECT_EQ(longhaul({"inspect", home.file("$b.h5")}, environment).exit_code, 0);
  struct Case {
    const char *path, *says;
  };
  for (const auto& [path, says] :
       std::initializer_list<Case>{{"$LONGHAUL_TEST_NO_SUCH/a", "LONGHAUL_TEST_NO_SUCH is not set"},
                                   {"a/${LONGHAUL_TEST_EMPTY}", "LONGHAUL_TEST_EMPTY is empty"},
                                   {"~somebody/a", "the home of another user (~somebody)"},
                                   {"${HOME/a", "does not begin with ${NAME}"}}) {
    for (const std::vector<std::string>& arguments : {std::vector<std::string>{"inspect", path},
                                                      {"report", path},
                                                      {"validate", path},
                                                      {"tokenize", "~/in", "--output", path},
                                                      {"bench", "layouts", "--lengths", path}}) {
      const ProcessResult result = longhaul(arguments, environment);
      EXPECT_EQ(result.exit_code, 64) << arguments[0] << result.err;
      EXPECT_TRUE(has(result.err, says)) << result.err;
    }
  }
}

TEST(Cli, AThreadThatTheSystemRefusesIsNamedWithTheLimits) {
  const TrainingJob job;
  // Stacks of 200 TB: no thread can have one.
  std::vector<std::string> command = {
      "bash", "-c", "ulimit -Ss 200000000000 2>/dev/null || exit 125; exec \"$0\" \"$@\"",
      longhaul_program()};
  const std::vector<std::string> arguments =
      job.train("run", {"comm.backend=loopback", "parallelism.context_parallel_degree=3"});
  command.insert(command.end(), arguments.begin(), arguments.end());
  ProcessOptions options;
  options.unset = kLauncherNames;
  const ProcessResult result = run_process(command, options);
  if (result.exit_code == 125) GTEST_SKIP() << "the stack limit cannot be raised here";
  EXPECT_EQ(result.exit_code, 69) << result.err;
  for (const char* part :
       {"the system refused the thread of ", "Resource temporarily unavailable",
        "this process has ", "KiB for the stack of each (ulimit -s)", "debug.threads lower"})
    EXPECT_TRUE(has(result.err, part)) << part << "\n" << result.err;
}

TEST(Cli, ExitCodesPassThroughMpirun) {
  const ProcessResult result =
      run_process(mpirun_command(2, {"validate", "/nonexistent/run.toml"}));
  EXPECT_EQ(result.exit_code, 78) << result.err;
}

// The helpers that all program-level tests lean on.
TEST(Process, ReportsExitSignalsOutputAndTimeouts) {
  EXPECT_EQ(run_process({"sh", "-c", "exit 7"}).exit_code, 7);
  const ProcessResult killed = run_process({"sh", "-c", "kill -9 $$"});
  EXPECT_EQ(killed.signal, 9);
  EXPECT_EQ(killed.exit_code, 137);
  ProcessOptions options;
  options.environment = {{"LONGHAUL_TEST_VALUE", "x y"}};
  options.unset = {"HOME"};
  options.directory = "/";
  const ProcessResult shown =
      run_process({"sh", "-c", "echo \"$LONGHAUL_TEST_VALUE|$HOME|$PWD\"; echo bad >&2"}, options);
  EXPECT_EQ(shown.out, "x y||/\n");
  EXPECT_EQ(shown.err, "bad\n");
  ProcessOptions hurried;
  hurried.timeout_seconds = 0.2;
  const ProcessResult late = run_process({"sh", "-c", "echo begun; sleep 30"}, hurried);
  EXPECT_TRUE(late.timed_out);
  EXPECT_EQ(late.out, "begun\n");
  EXPECT_LT(late.seconds, 10);
  EXPECT_THROW(run_process({"/nonexistent/program"}), std::runtime_error);
  Process stopped({"sleep", "30"});
  EXPECT_TRUE(stopped.running());
  stopped.signal(SIGTERM);
  EXPECT_EQ(stopped.wait().signal, SIGTERM);
  EXPECT_FALSE(stopped.running());
}

}  // namespace
}  // namespace longhaul::test
