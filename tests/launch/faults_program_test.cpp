// What a job of the real program does when a rank dies, stops, is told to stop, or is not like the
// others.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <regex>
#include <thread>

#include "runtime/cpu_level.h"
#include "tests/support/timing.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kRanks = 4;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

class FaultsTest : public testing::Test {
 protected:
  /// A job in the background that has completed at least this many steps.
  std::unique_ptr<Process> start(const std::string& name, const std::vector<std::string>& sets,
                                 std::int64_t steps) {
    auto job = std::make_unique<Process>(mpirun_command(kRanks, job_.train(name, sets)));
    EXPECT_TRUE(
        wait_until([&] { return !job->running() || std::ssize(job_.steps(name)) >= steps; }, 50));
    EXPECT_TRUE(job->running()) << job->wait().err;
    return job;
  }
  void expect_no_process_left() {
    std::map<pid_t, int> left;
    EXPECT_TRUE(wait_until([&] { return (left = processes_of(folder())).empty(); }, 5))
        << left.size() << " processes, the first is " << left.begin()->first;
  }
  /// Going on gives what a run without interruption gives, bit for bit.
  void expect_goes_on_as_if_nothing_happened(const std::string& name,
                                             const std::vector<std::string>& sets = {}) {
    const ProcessResult resumed = job_.run(kRanks, name, sets);
    EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_TRUE(has(resumed.out, "resumed  from the checkpoint of step")) << resumed.out;
    const ProcessResult straight = job_.run(kRanks, "straight");
    EXPECT_EQ(straight.exit_code, 0) << straight.err;
    const StepTexts steps = job_.steps(name);
    EXPECT_EQ(steps.size(), 60u);
    EXPECT_EQ(steps, job_.steps("straight"));
  }
  std::string folder() const { return job_.folder().path().string(); }

  TrainingJob job_;
};

TEST_F(FaultsTest, AKilledRankEndsTheJobWhichThenGoesOn) {
  const std::vector<std::string> sets = {"checkpoint.interval=5"};
  std::string name;
  const double seconds = test::least_of_attempts(5, [&](int attempt) {
    name = "run" + std::to_string(attempt);
    const auto job = start(name, sets, 12);
    EXPECT_EQ(kill(process_of_rank(folder(), 2), SIGKILL), 0);
    const auto killed = Clock::now();
    const ProcessResult result = job->wait();
    EXPECT_NE(result.exit_code, 0) << result.err;
    EXPECT_FALSE(result.timed_out);
    expect_no_process_left();
    return seconds_since(killed);
  });
  EXPECT_LT(seconds, 5);
  expect_goes_on_as_if_nothing_happened(name, sets);
}

class StoppedRank : public FaultsTest, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, StoppedRank, testing::Values(0, 2));

TEST_P(StoppedRank, IsAHangThatNamesItAndItsStep) {
  const int rank = GetParam();
  constexpr double kTimeout = 3;
  const double seconds = test::least_of_attempts(kTimeout + 2, [&](int attempt) {
    const std::string name = "run" + std::to_string(attempt);
    const auto job = start(name, {"comm.timeout_seconds=3", "training.steps=100000"}, 8);
    EXPECT_EQ(kill(process_of_rank(folder(), rank), SIGSTOP), 0);
    const auto stopped = Clock::now();
    const ProcessResult result = job->wait();
    const double took = seconds_since(stopped);
    EXPECT_EQ(result.exit_code, 76) << result.err;
    EXPECT_GE(took, kTimeout - 0.5);
    // A rank that reports after mpirun has continued the stopped one says "was stopped".
    const std::regex stopped_rank(
        "\nrank (\\d+) \\([^)]*, pid \\d+\\) (?:was )?stopped.*; step (\\d+), training");
    std::smatch found;
    const bool named = std::regex_search(result.err, found, stopped_rank);
    EXPECT_TRUE(named) << result.err;
    if (!named) return took;
    EXPECT_EQ(std::stoi(found[1]), rank) << result.err;
    const std::int64_t completed = job_.steps(name).rbegin()->first;  // of rank 0's count
    EXPECT_GE(std::stoll(found[2]), completed);
    EXPECT_LE(std::stoll(found[2]), completed + 1);
    // One message is enough; a second one may slip out before the launcher ends its rank.
    EXPECT_LE(count(result.err, "longhaul: error:"), 2) << result.err;
    expect_no_process_left();
    return took;
  });
  EXPECT_LT(seconds, kTimeout + 2);
}

TEST_F(FaultsTest, SignalsMakeAllRanksCheckpointTheSameStepAndStop) {
  for (const int signal : {SIGUSR1, SIGTERM}) {
    const std::string name = signal == SIGUSR1 ? "usr1" : "term";
    const auto job = start(name, {}, 10);
    if (signal == SIGUSR1) {
      job->signal(SIGUSR1);  // mpirun hands it on
    } else {
      ASSERT_EQ(kill(process_of_rank(folder(), 3), SIGTERM), 0);
    }
    const ProcessResult result = job->wait();
    EXPECT_EQ(result.exit_code, 75) << result.err;
    EXPECT_TRUE(has(result.out, "start the same command again to go on")) << result.out;
    EXPECT_FALSE(has(result.err, "longhaul: error:")) << result.err;
    expect_no_process_left();
    const std::vector<std::int64_t> checkpoints = job_.checkpoints(name);
    ASSERT_EQ(checkpoints.size(), 1u);
    EXPECT_EQ(checkpoints.front(), job_.steps(name).rbegin()->first);
    EXPECT_LT(checkpoints.front(), 60);
    const ProcessResult inspected =
        run_longhaul({"inspect", job_.checkpoint(name, checkpoints.front())});
    EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
    EXPECT_TRUE(has(inspected.out, "intact")) << inspected.out;
    expect_goes_on_as_if_nothing_happened(name);
  }
}

TEST_F(FaultsTest, ASignalWithoutCheckpointsDoesNotPromiseOne) {
  const auto job = start("unsaved", {"checkpoint.enable=false"}, 10);
  job->signal(SIGUSR1);
  const ProcessResult result = job->wait();
  EXPECT_EQ(result.exit_code, 128 + SIGUSR1) << result.err;  // 75 would have it requeued for ever
  EXPECT_TRUE(has(result.out, "nothing was saved")) << result.out;
  expect_no_process_left();
}

/// A job in which rank 2 does something of its own, a line of shell.
class OddRank : public FaultsTest {
 protected:
  void expect_disagreement(const std::string& line_of_rank_2, const std::string& what,
                           const std::string& value = "[0-9a-f]+",
                           std::vector<std::string> sets = {}) {
    sets.push_back("data.corpus=corpus.h5");
    const std::string script = job_.folder().write(
        "start", "#!/bin/sh\nif [ \"$OMPI_COMM_WORLD_RANK\" = 2 ]; then " + line_of_rank_2 +
                     "; fi\nexec " + longhaul_program() + " \"$@\"\n");
    fs::permissions(script, fs::perms::owner_all);
    std::vector<std::string> command = mpirun_command(kRanks, job_.train("run", sets));
    std::ranges::replace(command, longhaul_program(), script);
    ProcessOptions options;
    options.directory = job_.folder().path();
    const ProcessResult result = run_process(command, options);
    EXPECT_EQ(result.exit_code, 77) << result.err;
    EXPECT_LT(result.seconds, 5);
    EXPECT_TRUE(std::regex_search(result.err, std::regex("\n  " + what + ":\n"))) << result.err;
    EXPECT_TRUE(std::regex_search(result.err, std::regex("\n +" + value + "  ranks? 2\n")))
        << result.err;
    EXPECT_TRUE(has(result.err, "ranks 0-1, 3\n")) << result.err;
    EXPECT_LE(count(result.err, "longhaul: error:"), 2) << result.err;
    EXPECT_FALSE(fs::exists(job_.output("run", "metrics.jsonl")));
    EXPECT_TRUE(job_.checkpoints("run").empty());
    expect_no_process_left();
  }
};

TEST_F(OddRank, ConfigurationNamesTheKey) {
  expect_disagreement("exec " + longhaul_program() + " \"$@\" --set optimizer.lr=2e-3",
                      "config optimizer\\.lr", "0\\.002");
}

TEST_F(OddRank, ConfigurationOfAnotherGridDoesToo) {
  expect_disagreement(
      "exec " + longhaul_program() + " \"$@\" --set parallelism.context_parallel_degree=3",
      "config parallelism\\.context_parallel_degree", "3");
}

TEST_F(OddRank, Corpus) {  // in a place of the same name, as on a node's own disk
  fs::create_directory(job_.folder().file("other"));
  write_random_corpus(job_.folder().file("other/corpus.h5"), 12'000, 61, 2);
  expect_disagreement("cd other", "corpus", "[0-9a-f]{32}");
}

TEST_F(OddRank, ValidationCorpus) {
  fs::create_directory(job_.folder().file("other"));
  fs::copy(job_.corpus(), job_.folder().file("other/corpus.h5"));
  write_random_corpus(job_.folder().file("held_out.h5"), 500, 61, 3);
  write_random_corpus(job_.folder().file("other/held_out.h5"), 500, 61, 4);
  expect_disagreement("cd other", "validation corpus", "[0-9a-f]{32}",
                      {"validation.enable=true", "validation.corpus=held_out.h5"});
}

TEST_F(OddRank, Build) {
  const std::string other = job_.folder().file("longhaul");
  fs::copy_file(longhaul_program(), other);
  std::ofstream(other, std::ios::app) << 'x';
  expect_disagreement("exec " + other + " \"$@\"", "build");
}

TEST_F(OddRank, Instructions) {
  if (runtime::best_cpu_level() == runtime::CpuLevel::avx2)
    GTEST_SKIP() << "this machine has avx2 at most: all ranks have the same";
  expect_disagreement("export LONGHAUL_CPU_LEVEL=avx2", "CPU level \\(LONGHAUL_CPU_LEVEL\\)",
                      "avx2");
}

TEST_F(FaultsTest, AJobKilledWhileItSavesLeavesACheckpointThatLoads) {
  const std::vector<std::string> sets = {"checkpoint.interval=1"};
  std::mt19937 random(20);
  for (int attempt = 0; attempt < 5; ++attempt) {
    const std::int64_t before = std::ssize(job_.steps("run"));
    const auto job = start("run", sets, before + 2);  // the first one saved
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 60'000));
    job->signal(SIGKILL);
    for (const auto& [process, rank] : processes_of(folder())) kill(process, SIGKILL);
    EXPECT_EQ(job->wait().signal, SIGKILL);
    expect_no_process_left();
    const std::vector<std::int64_t> checkpoints = job_.checkpoints("run");
    ASSERT_FALSE(checkpoints.empty());
    for (const std::int64_t step : checkpoints) {
      const ProcessResult result = run_longhaul({"inspect", job_.checkpoint("run", step)});
      EXPECT_EQ(result.exit_code, 0) << result.err;
    }
    if (checkpoints.back() > 50) break;
  }
  expect_goes_on_as_if_nothing_happened("run");
}

}  // namespace
}  // namespace longhaul::test
