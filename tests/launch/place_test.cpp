// With how many threads the program works, and how these wait.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "runtime/cores.h"
#include "tests/support/process.h"
#include "tests/support/training_job.h"

namespace longhaul::launch {
namespace {

using runtime::own_cores;

TEST(Place, ThreadsWaitPassivelyUnlessTheEnvironmentSaysHow) {
  const std::vector<std::string> unset{"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"};
  // GNU's OpenMP says what it has read before main(): how often a thread looks before it sleeps.
  const auto spins = [&](std::map<std::string, std::string> set) {
    test::ProcessOptions options;
    options.environment = set;
    options.environment["OMP_DISPLAY_ENV"] = "verbose";
    for (const std::string& name : unset) {
      if (!set.contains(name)) options.unset.push_back(name);
    }
    const auto result = test::run_longhaul({"--version"}, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(result.out.starts_with("longhaul ")) << result.out;
    const std::string name = "GOMP_SPINCOUNT = '";
    const auto at = result.err.rfind(name);  // of the program that went on
    return at == std::string::npos ? -1 : std::atoll(result.err.c_str() + at + name.size());
  };
  if (spins({{"GOMP_SPINCOUNT", "7"}}) < 0) GTEST_SKIP() << "this OpenMP does not say how it waits";
  EXPECT_LE(spins({}), 2000);
  EXPECT_EQ(spins({{"GOMP_SPINCOUNT", "7"}}), 7);
  EXPECT_GT(spins({{"OMP_WAIT_POLICY", "active"}}), 1000000);
  EXPECT_GT(spins({{"KMP_BLOCKTIME", "1"}}), 1000);  // left as it was
}

TEST(Place, TheStartSaysWhatRanksLendEachOther) {
  const test::TrainingJob job;
  const auto lending_line = [&](const std::string& limits, const std::string& set) {
    std::string command = limits;
    for (const std::string& word : test::mpirun_command(
             2, job.train("lending", {"training.steps=1", "lr_scheduler.warmup_steps=0",
                                      "checkpoint.enable=false", set})))
      command += " '" + word + "'";
    const auto result = test::run_process({"sh", "-c", command}, {});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const auto begin = result.out.find("\nlending  ");
    return begin == std::string::npos
               ? std::string()
               : result.out.substr(begin + 10, result.out.find('\n', begin + 1) - begin - 10);
  };
  EXPECT_EQ(lending_line("exec", "comm.shared_memory=\"auto\""),
            "ranks may read each other's memory where it lies");
  EXPECT_EQ(lending_line("exec", "comm.shared_memory=\"off\""), "");
  const std::string refused =
      lending_line("ulimit -f 2000000 && exec", "comm.shared_memory=\"auto\"");
  EXPECT_TRUE(refused.starts_with("none, MPI carries all messages: rank 0: the system refuses "))
      << refused;
  EXPECT_NE(refused.find("(ulimit -f)"), std::string::npos) << refused;
}

TEST(Place, TheStartSaysThreadsAndCores) {
  const test::TrainingJob job;
  const auto cores_line = [&](const std::vector<std::string>& command,
                              const std::map<std::string, std::string>& set) {
    test::ProcessOptions options;
    options.environment = set;
    for (const char* name : {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}) {
      if (!set.contains(name)) options.unset.push_back(name);
    }
    const auto result = test::run_process(command, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const auto begin = result.out.find("cores    ");
    return begin == std::string::npos
               ? "no line: " + result.out
               : result.out.substr(begin + 9, result.out.find('\n', begin) - begin - 9);
  };
  std::vector<std::string> pinned{"taskset", "-c", std::to_string(own_cores("").cpus.front()),
                                  test::longhaul_program()};
  const auto train = job.train("pinned", {"training.steps=1", "lr_scheduler.warmup_steps=0",
                                          "checkpoint.enable=false", "debug.threads=0"});
  pinned.insert(pinned.end(), train.begin(), train.end());
  const std::string one = cores_line(pinned, {});
  EXPECT_TRUE(one.starts_with("1 thread a rank on 1 core")) << one;
  EXPECT_TRUE(one.ends_with(", waiting passively")) << one;
  std::vector<std::string> given{test::longhaul_program()};
  given.insert(given.end(), train.begin(), train.end());
  const std::string three =
      cores_line(given, {{"OMP_NUM_THREADS", "3"}, {"OMP_WAIT_POLICY", "active"}});
  EXPECT_TRUE(three.starts_with("3 threads a rank (OMP_NUM_THREADS) on ")) << three;
  EXPECT_TRUE(three.ends_with("waiting as OMP_WAIT_POLICY=active says")) << three;
  // Two ranks, each told to use only this CPU: they share it.
  std::vector<std::string> shared{"taskset", "-c", std::to_string(own_cores("").cpus.front())};
  const auto mpirun = test::mpirun_command(
      2, job.train("shared", {"training.steps=1", "lr_scheduler.warmup_steps=0",
                              "checkpoint.enable=false", "debug.threads=0"}));
  shared.insert(shared.end(), mpirun.begin(), mpirun.end());
  const std::string two = cores_line(shared, {});
  EXPECT_TRUE(two.starts_with("1 thread a rank on 1 core")) << two;
  EXPECT_NE(two.find("which 2 threads share"), std::string::npos) << two;
}

}  // namespace
}  // namespace longhaul::launch
