// Training with attention servers outside of the job, whose servers are killed, stopped and cut
// off: losses are those of an undisturbed run, bit for bit, or the job says why it ends.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "tests/support/attention_server.h"
#include "tests/support/fault_proxy.h"
#include "tests/support/served_tasks.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

using runtime::net::parse_address;

constexpr double kTimeout = 1, kMoreSeconds = 2;  // of a server; that its loss may cost beside
constexpr int kCannotMakeHosts = 125;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class LostServersTest : public testing::Test {
 protected:
  std::string socket(const std::string& name) const { return "unix:" + job_.folder().file(name); }
  std::unique_ptr<AttentionServer> start(const std::string& address) const {
    return std::make_unique<AttentionServer>(address, token_,
                                             std::vector<std::string>{"--threads", "1"});
  }
  std::vector<std::string> sets(const std::vector<std::string>& addresses,
                                const std::vector<std::string>& more = {},
                                double timeout = kTimeout) const {
    std::string list;
    for (const std::string& address : addresses)
      list += (list.empty() ? "\"" : ", \"") + address + "\"";
    std::vector<std::string> all = {"parallelism.context_parallel_scheme=disaggregated",
                                    "parallelism.context_parallel_layout=packed",
                                    "parallelism.data_parallel_replicate_degree=2",
                                    "attention_servers.mode=external",
                                    "attention_servers.addresses=[" + list + "]",
                                    "attention_servers.token_file=" + token_,
                                    "attention_servers.timeout_seconds=" + std::to_string(timeout)};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  void expect_point_by_point(int signal, int context_degree, double timeout,
                             const std::vector<int>& points);

  TrainingJob job_;
  const std::string token_ = write_token(job_.folder());
};

/// Two steps of two layers and 2 x context_degree ranks. One of two servers gets a signal at some
/// of eight points of what passes between it and the ranks.
void LostServersTest::expect_point_by_point(int signal, int context_degree, double timeout,
                                            const std::vector<int>& points) {
  const auto good = start(socket("good"));
  auto bad = start(socket("bad"));
  const auto run = [&](const std::string& name, const std::string& through) {
    return job_.run(0, name,
                    sets({through, good->address()},
                         {"comm.backend=loopback",
                          "parallelism.context_parallel_degree=" + std::to_string(context_degree),
                          "training.steps=2", "lr_scheduler.warmup_steps=1"},
                         timeout));
  };
  std::int64_t bytes[2];
  double seconds = 0;
  {
    const FaultProxy proxy(parse_address(socket("p")), parse_address(bad->address()));
    const ProcessResult result = run("undisturbed", proxy.address());
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_FALSE(has(result.out, "is lost")) << result.out;
    seconds = result.seconds;
    bytes[0] = proxy.to_client();
    bytes[1] = proxy.to_server();
  }
  const StepTexts expected = job_.steps("undisturbed");
  ASSERT_EQ(expected.size(), 2u);
  for (const int point : points) {
    const bool to_server = point % 2 == 0;
    const std::int64_t at = bytes[to_server ? 1 : 0] * (2 * point + 1) / 16;
    const FaultProxy proxy(
        parse_address(socket("p")), parse_address(bad->address()),
        {Fault::What::act, to_server, at, [&] { bad->process().signal(signal); }});
    const std::string name = "point" + std::to_string(point);
    const ProcessResult result = run(name, proxy.address());
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(proxy.fired());
    EXPECT_LT(result.seconds, seconds + (signal == SIGSTOP ? timeout : 0) + kMoreSeconds)
        << "point " << point;
    EXPECT_TRUE(has(result.out, "attention server " + proxy.address() + " is lost: "))
        << result.out;
    EXPECT_EQ(job_.steps(name), expected) << "point " << point;
    if (signal == SIGSTOP) {
      bad->process().signal(SIGCONT);
    } else {
      bad.reset();
      bad = start(socket("bad"));
    }
  }
}

TEST_F(LostServersTest, OneThatIsKilledChangesNoLoss) {
  expect_point_by_point(SIGKILL, 1, kTimeout, {0, 1, 2, 3, 4, 5, 6, 7});
}
TEST_F(LostServersTest, OneThatIsStoppedChangesNoLoss) {
  expect_point_by_point(SIGSTOP, 1, kTimeout, {0, 1, 2, 3, 4, 5, 6, 7});
}
// Some ranks have their answers when it stops and others have not: all wait at the same time.
TEST_F(LostServersTest, OneThatIsStoppedIsWaitedForOnceByAllRanks) {
  expect_point_by_point(SIGSTOP, 2, kMoreSeconds + 1, {1, 3});
}

TEST_F(LostServersTest, OneThatIsStartedAgainServesOn) {
  const auto good = start(socket("good"));
  auto bad = start(socket("bad"));
  Process job(mpirun_command(
      2, job_.train("job", sets({bad->address(), good->address()}, {"training.steps=100000"}))));
  const auto reaches = [&](const std::string& line) {
    return wait_until([&] { return has(job.said(), line); }, 30);
  };
  ASSERT_TRUE(wait_until([&] { return job_.steps("job").size() > 2; }, 30)) << job.wait().err;
  bad->process().signal(SIGKILL);
  EXPECT_TRUE(reaches(bad->address() + " is lost: ")) << job.said();
  bad = start(socket("bad"));
  EXPECT_TRUE(reaches(bad->address() + " is back")) << job.said();
  bad->process().signal(SIGKILL);
  good->process().signal(SIGKILL);
  const ProcessResult result = job.wait();
  EXPECT_EQ(result.exit_code, 76) << result.out << result.err;
  EXPECT_TRUE(has(result.err, "no attention server is left\n  " + bad->address() + ": "))
      << result.err;
  EXPECT_TRUE(has(result.err, "\n  " + good->address() + ": ")) << result.err;
}

TEST_F(LostServersTest, ThoseOfAnotherTokenOrNoneAtAllEndAJobAtItsStart) {
  const AttentionServer other(socket("other"),
                              write_token(job_.folder(), "token2", "fedcba9876543210"));
  const std::vector<std::string> in_one = {"comm.backend=loopback",
                                           "parallelism.context_parallel_degree=1"};
  ProcessResult result = job_.run(0, "job", sets({other.address()}, in_one));
  EXPECT_EQ(result.exit_code, 77) << result.err;
  EXPECT_TRUE(has(result.err, "attention server " + other.address() + ": it refuses: "))
      << result.err;
  EXPECT_TRUE(has(other.process().said(), "is refused: its token is not this server's"));
  result = job_.run(0, "job", sets({socket("none")}, in_one));
  EXPECT_EQ(result.exit_code, 69) << result.err;
  EXPECT_TRUE(has(result.err, "longhaul serve --listen " + socket("none"))) << result.err;
}

/// On hosts of their own (namespaces, tests/support/hosts); one of two is cut off.
TEST_F(LostServersTest, OneWhoseHostIsCutOffChangesNoLoss) {
  const std::string script = std::string(LONGHAUL_SOURCE_DIR) + "/tests/support/hosts";
  const std::string hosts = job_.folder().file("hosts");
  std::filesystem::create_directory(hosts);
  const std::string serve = "for i in 2 3; do \"$0/agent\" 10.99.0.$i " + longhaul_program() +
                            " serve --threads 1 --listen tcp:10.99.0.$i:7007 --token-file " +
                            token_ + " >\"$0/serve$i\" 2>&1 & done; exec \"$@\"";
  const std::vector<std::string> more = {"training.steps=60"};
  std::vector<std::string> command = {script, "run", hosts, "3", "sh", "-c", serve, hosts};
  for (const std::string& word : mpirun_command(
           2, job_.train("cut", sets({"tcp:10.99.0.2:7007", "tcp:10.99.0.3:7007"}, more))))
    command.push_back(word);
  Process job(command);
  if (!wait_until([&] { return !job.running() || job_.steps("cut").size() > 5; }, 30) ||
      !job.running()) {
    const ProcessResult result = job.wait();
    if (result.exit_code == kCannotMakeHosts) GTEST_SKIP() << result.err;
    FAIL() << result.exit_code << result.out << result.err;
  }
  EXPECT_EQ(run_process({script, "cut", hosts, "3"}).exit_code, 0);
  const ProcessResult result = job.wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(has(result.out, "attention server tcp:10.99.0.3:7007 is lost: no answer within"))
      << result.out;
  const auto first = start(socket("a")), second = start(socket("b"));
  const ProcessResult here = job_.run(2, "here", sets({first->address(), second->address()}, more));
  EXPECT_EQ(here.exit_code, 0) << here.err;
  EXPECT_EQ(job_.steps("cut").size(), 60u);
  EXPECT_EQ(job_.steps("cut"), job_.steps("here"));
}

}  // namespace
}  // namespace longhaul::test
