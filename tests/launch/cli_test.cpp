// The program from outside: exit codes, streams, what it says.

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/build_info.h"
#include "tests/support/process.h"

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

TEST(Cli, AFullOutputIsAnIoError) {
  ProcessOptions options;
  options.unset = kLauncherNames;
  const ProcessResult result =
      run_process({"sh", "-c", longhaul_program() + " validate --keys > /dev/full"}, options);
  EXPECT_EQ(result.exit_code, 74) << result.err;
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
