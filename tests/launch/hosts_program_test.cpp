// Jobs of launch/mpirun/train over several hosts, which are namespaces of this machine
// (tests/support/hosts).
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>

#include "tests/support/timing.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

constexpr int kHosts = 3;  // one rank each
constexpr int kCannotMakeHosts = 125;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class HostsTest : public testing::Test {
 protected:
  /// The job over all hosts, in the background.
  std::unique_ptr<Process> start(const std::string& name, const std::vector<std::string>& sets) {
    hosts_ = job_.folder().file("hosts" + std::to_string(++started_));
    std::filesystem::create_directory(hosts_);
    std::vector<std::string> command = {
        kScript, "run", hosts_, std::to_string(kHosts), kTrain, std::to_string(kHosts)};
    const std::vector<std::string> arguments = job_.train(name, sets);
    command.insert(command.end(), arguments.begin() + 1, arguments.end());  // without the verb
    ProcessOptions options;
    options.environment = {
        {"LONGHAUL", longhaul_program()}, {"LOST_HOST_SECONDS", "1"}, {"OMP_NUM_THREADS", "1"}};
    return std::make_unique<Process>(command, options);
  }
  bool reaches(Process& job, const std::string& name, std::int64_t steps) {
    EXPECT_TRUE(
        wait_until([&] { return !job.running() || std::ssize(job_.steps(name)) >= steps; }, 50));
    return job.running();
  }
  void cut(int host) const {
    const ProcessResult result = run_process({kScript, "cut", hosts_, std::to_string(host)});
    EXPECT_EQ(result.exit_code, 0) << result.err;
  }

  TrainingJob job_;

 private:
  const std::string kScript = std::string(LONGHAUL_SOURCE_DIR) + "/tests/support/hosts";
  const std::string kTrain = std::string(LONGHAUL_SOURCE_DIR) + "/launch/mpirun/train";
  std::string hosts_;
  int started_ = 0;
};

TEST_F(HostsTest, ThreeGiveTheLossesOfOneBitForBitAndStopTogether) {
  constexpr std::int64_t kSteps = 300;  // enough for a signal to arrive on a busy machine
  const std::vector<std::string> sets = {"training.steps=" + std::to_string(kSteps)};
  auto job = start("three", sets);
  if (!reaches(*job, "three", 8)) {
    const ProcessResult result = job->wait();
    if (result.exit_code == kCannotMakeHosts) GTEST_SKIP() << result.err;
    FAIL() << result.exit_code << result.out << result.err;
  }
  job->signal(SIGUSR1);  // handed on to mpirun, and by it to the ranks of all hosts
  ProcessResult result = job->wait();
  EXPECT_EQ(result.exit_code, 75) << result.err;
  EXPECT_TRUE(has(result.out, "3 on 3 hosts")) << result.out;
  ASSERT_EQ(job_.checkpoints("three").size(), 1u);
  EXPECT_LT(job_.checkpoints("three")[0], kSteps);
  result = start("three", sets)->wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(job_.run(kHosts, "one", sets).exit_code, 0);
  EXPECT_EQ(std::ssize(job_.steps("three")), kSteps);
  EXPECT_EQ(job_.steps("three"), job_.steps("one"));
}

TEST_F(HostsTest, OneThatIsCutOffIsNamedAndEndsTheJob) {
  constexpr double kTimeout = 2, kPatience = 1;
  const std::vector<std::string> sets = {"comm.timeout_seconds=2", "training.steps=100000"};
  const double seconds = least_of_attempts(kTimeout + kPatience + 2, [&](int attempt) {
    const std::string name = "run" + std::to_string(attempt);
    auto job = start(name, sets);
    if (!reaches(*job, name, 8)) {
      const ProcessResult result = job->wait();
      EXPECT_EQ(result.exit_code, kCannotMakeHosts) << result.err;
      [&] { GTEST_SKIP() << result.err; }();
      return 0.0;
    }
    cut(3);
    const auto begin = std::chrono::steady_clock::now();
    const ProcessResult result = job->wait();
    EXPECT_EQ(result.exit_code, 76) << result.err;
    EXPECT_TRUE(has(result.err, "for rank 2 (")) << result.err;
    EXPECT_TRUE(has(result.err, "\nrank 2 (lh3, ")) << result.err;
    EXPECT_TRUE(has(result.err, "for a host that does not answer; it is ended")) << result.err;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  });
  EXPECT_LT(seconds, kTimeout + kPatience + 2);
}

TEST(LaunchWithMpirun, WrongArgumentsAreUsageErrorsThatShowThem) {
  const std::string script = std::string(LONGHAUL_SOURCE_DIR) + "/launch/mpirun/train";
  ProcessOptions options;
  options.environment = {{"LONGHAUL", "/bin/true"}};
  struct Case {
    std::vector<std::string> arguments;
    std::string says;
  };
  for (const auto& [arguments, says] : std::initializer_list<Case>{
           {{}, "RANKS and CONFIG.toml are missing"},
           {{"0", "a.toml"}, "RANKS is '0'"},
           {{"00", "a.toml"}, "RANKS is '00'"},
           {{"-1", "a.toml"}, "RANKS is '-1'"},
           {{"+3", "a.toml"}, "RANKS is '+3'"},
           {{"3.0", "a.toml"}, "RANKS is '3.0'"},
           {{"abc", "a.toml"}, "RANKS is 'abc'"},
           {{"", "a.toml"}, "RANKS is ''"},
           {{"99999999999999999999", "a.toml"}, "RANKS is '99999999999999999999'"},
           {{"a.toml", "2"}, "RANKS is 'a.toml'"},
           {{"2"}, "CONFIG.toml is missing"},
           {{"2", ""}, "CONFIG.toml is missing"}}) {
    std::vector<std::string> command = {script};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const ProcessResult result = run_process(command, options);
    EXPECT_EQ(result.exit_code, 64) << says << result.out;
    EXPECT_TRUE(has(result.err, says)) << result.err;
    EXPECT_TRUE(has(result.err, "launch/mpirun/train RANKS CONFIG.toml")) << result.err;
    EXPECT_EQ(result.out, "") << says;
  }
  options.environment["HOSTFILE"] = "/nonexistent/hosts";
  const ProcessResult result = run_process({script, "2", "a.toml"}, options);
  EXPECT_EQ(result.exit_code, 69) << result.err;
  EXPECT_TRUE(has(result.err, "'/nonexistent/hosts'")) << result.err;
}

}  // namespace
}  // namespace longhaul::test
