// Jobs of the real program whose last ranks are attention servers: what they give, what they say,
// and what becomes of a job that loses one.
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <filesystem>
#include <regex>

#include "tests/support/attention_server.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

constexpr int kRanks = 5;  // data 2 x context 2, and a server

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class ServersJob : public testing::Test {
 protected:
  static std::vector<std::string> with(std::vector<std::string> more = {}) {
    std::vector<std::string> sets = {"parallelism.context_parallel_scheme=disaggregated",
                                     "parallelism.context_parallel_layout=packed",
                                     "parallelism.data_parallel_replicate_degree=2",
                                     "attention_servers.mode=dedicated",
                                     "attention_servers.count=1"};
    sets.insert(sets.end(), more.begin(), more.end());
    return sets;
  }
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
  static void expect_close(const StepTexts& actual, const StepTexts& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (const auto& [step, text] : actual) {
      const double loss = std::stod(text), other = std::stod(expected.at(step));
      EXPECT_NEAR(loss, other, 1e-4 * other) << "step " << step;
    }
  }
  std::string folder() const { return job_.folder().path().string(); }

  TrainingJob job_;
};

TEST_F(ServersJob, MpiAndLoopbackGiveTheSameBitsAndSayWhoServes) {
  const std::string held_out = job_.folder().file("held-out.h5");
  write_random_corpus(held_out, 1'000, 61, 9);
  const auto sets = with({"training.steps=8", "training.interleave=2", "validation.enable=true",
                          "validation.corpus=" + held_out, "validation.freq=4",
                          "parallelism.context_parallel_degree=2", "training.tokens_per_step=768"});
  const ProcessResult mpi = job_.run(kRanks, "mpi", sets);
  ASSERT_EQ(mpi.exit_code, 0) << mpi.err;
  EXPECT_TRUE(has(mpi.out, "servers  1 dedicated rank: 4")) << mpi.out;
  EXPECT_TRUE(has(mpi.out, "; an attention server at most ")) << mpi.out;
  EXPECT_TRUE(has(mpi.out, "ranks    5 on 1 host")) << mpi.out;
  EXPECT_TRUE(has(mpi.out, "validation loss")) << mpi.out;
  auto in_one = sets;
  in_one.push_back("comm.backend=loopback");
  const ProcessResult loopback = job_.run(0, "loopback", in_one);
  ASSERT_EQ(loopback.exit_code, 0) << loopback.err;
  EXPECT_EQ(job_.steps("mpi").size(), 8u);
  EXPECT_EQ(job_.steps("mpi"), job_.steps("loopback"));
  const ProcessResult one =
      job_.run(0, "one", {"training.steps=8", "training.tokens_per_step=768"});
  ASSERT_EQ(one.exit_code, 0) << one.err;
  expect_close(job_.steps("mpi"), job_.steps("one"));
}

/// Servers that are processes of their own, at the end of a Unix socket and of TCP.
TEST_F(ServersJob, ExternalServersGiveTheLossesOfOneRank) {
  const std::string token = job_.folder().write("token", "sixteen bytes of a secret, at least");
  std::filesystem::permissions(token, std::filesystem::perms::owner_read);
  const AttentionServer one("unix:" + job_.folder().file("socket"), token, {"--threads", "1"}),
      other("tcp:127.0.0.1:0", token, {"--threads", "1"});
  const std::vector<std::string> sets = {
      "training.steps=8",
      "parallelism.context_parallel_scheme=disaggregated",
      "parallelism.context_parallel_layout=packed",
      "parallelism.data_parallel_replicate_degree=2",
      "attention_servers.mode=external",
      "attention_servers.addresses=[\"" + one.address() + "\", \"" + other.address() + "\"]",
      "attention_servers.token_file=" + token};
  const ProcessResult result = job_.run(2, "external", sets);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(has(result.out, "servers  2 external servers: unix:")) << result.out;
  auto measured = sets;
  measured.push_back("attention_servers.measure_speeds=true");
  const ProcessResult by_speed = job_.run(2, "measured", measured);
  ASSERT_EQ(by_speed.exit_code, 0) << by_speed.err;
  const ProcessResult alone = job_.run(0, "alone", {"training.steps=8"});
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  expect_close(job_.steps("external"), job_.steps("alone"));
  expect_close(job_.steps("measured"), job_.steps("alone"));
}

TEST_F(ServersJob, OtherNumbersOfRanksAreRefused) {
  const ProcessResult four = job_.run(4, "four", with({"parallelism.context_parallel_degree=2"}));
  EXPECT_EQ(four.exit_code, 69) << four.err;
  EXPECT_TRUE(
      has(four.err, "data 2 * context 2 + 1 attention server = 5 ranks, but there are 4; start 5"))
      << four.err;
  const ProcessResult left = job_.run(4, "left", with());
  EXPECT_EQ(left.exit_code, 69) << left.err;
  EXPECT_TRUE(has(left.err, "start 1 and a multiple of 2 ranks")) << left.err;
}

TEST_F(ServersJob, AKilledServerEndsTheJobWhichGoesOnWithoutServers) {
  const auto sets = with({"checkpoint.interval=2"});
  const auto job = start("run", sets, 7);
  EXPECT_EQ(kill(process_of_rank(folder(), 4), SIGKILL), 0);
  const ProcessResult result = job->wait();
  EXPECT_NE(result.exit_code, 0) << result.err;
  EXPECT_FALSE(result.timed_out);
  EXPECT_TRUE(has(result.err, "signal 9") || has(result.err, "rank 4")) << result.err;
  expect_no_process_left();
  const ProcessResult resumed =
      job_.run(2, "run", {"parallelism.context_parallel_degree=2", "training.steps=12"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_TRUE(
      has(resumed.out, "changed  attention_servers.mode from \"dedicated\" to \"in_place\""))
      << resumed.out;
  EXPECT_EQ(job_.steps("run").size(), 12u);
}

TEST_F(ServersJob, AStoppedServerIsAHangThatNamesIt) {
  const auto job = start("run", with({"comm.timeout_seconds=3", "training.steps=100000"}), 5);
  EXPECT_EQ(kill(process_of_rank(folder(), 4), SIGSTOP), 0);
  const ProcessResult result = job->wait();
  EXPECT_EQ(result.exit_code, 76) << result.err;
  const std::regex stopped("\nrank 4 \\([^)]*, pid \\d+\\) (?:was )?stopped");
  EXPECT_TRUE(std::regex_search(result.err, stopped)) << result.err;
  expect_no_process_left();
}

TEST_F(ServersJob, ASignalToAServerStopsAllRanksWithACheckpoint) {
  const auto job = start("run", with({"training.steps=100000"}), 5);
  EXPECT_EQ(kill(process_of_rank(folder(), 4), SIGUSR1), 0);
  const ProcessResult result = job->wait();
  EXPECT_EQ(result.exit_code, 75) << result.err;
  ASSERT_EQ(job_.checkpoints("run").size(), 1u);
  EXPECT_EQ(job_.checkpoints("run").back(), job_.steps("run").rbegin()->first);
  const ProcessResult resumed =
      job_.run(kRanks, "run",
               with({"training.steps=" + std::to_string(job_.checkpoints("run").back() + 2)}));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_TRUE(has(resumed.out, "resumed  from the checkpoint of step")) << resumed.out;
}

}  // namespace
}  // namespace longhaul::test
