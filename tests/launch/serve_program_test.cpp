// `longhaul serve`: real processes that are killed, stopped and told to stop, and what their
// clients make of it.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <future>
#include <thread>

#include "parallel/disaggregation/external_servers.h"
#include "tests/support/attention_server.h"
#include "tests/support/expect_error.h"
#include "tests/support/fault_proxy.h"
#include "tests/support/held_tasks.h"
#include "tests/support/served_tasks.h"
#include "tests/support/training_job.h"

namespace longhaul::test {
namespace {

using attention::Pass;
using parallel::ExternalServers;
using runtime::ExitCode;
using runtime::net::parse_address;
using Clock = std::chrono::steady_clock;

constexpr double kTimeout = 20, kShortTimeout = 0.7;  // of a server; of one that is stopped
constexpr double kMoreSeconds = 2;                    // that its loss may cost beside

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A layer's tasks for one rank: six for two servers.
std::vector<TaskCase> layer() {
  return {6, {{256, 512, 4, 2, 32, 32, runtime::DType::float32}, {0.2f}, true}};
}

class ServeTest : public testing::Test {
 protected:
  std::string socket(const std::string& name) const { return "unix:" + folder_.file(name); }
  std::unique_ptr<AttentionServer> start(const std::string& address) const {
    return std::make_unique<AttentionServer>(address, token_,
                                             std::vector<std::string>{"--threads", "1"});
  }
  std::shared_ptr<ExternalServers> connect(const std::vector<std::string>& addresses,
                                           const std::string& build,
                                           double timeout = kTimeout) const {
    return parallel::connect_servers({.addresses = addresses,
                                      .token_file = token_,
                                      .timeout_seconds = timeout,
                                      .name = "rank 5",
                                      .build = build});
  }
  void expect_point_by_point(Pass pass, int signal);

  const TempDirectory folder_;
  const std::string token_ = write_token(folder_);
};

/// Eight points of a call: how much of its bytes have passed, to the server or to the client.
struct Point {
  bool to_server;
  double part;
};
constexpr Point kPoints[] = {{true, 0},   {true, 0.0001}, {true, 0.2},  {true, 0.34},
                             {true, 0.7}, {false, 0},     {false, 0.5}, {false, 0.9999}};

/// One of two servers gets a signal at each of them.
void ServeTest::expect_point_by_point(Pass pass, int signal) {
  const auto good = start(socket("good"));
  auto bad = start(socket("bad"));
  HeldTasks tasks(layer(), 2);
  const auto expected = tasks.expected(pass);
  std::int64_t hello[2], bytes[2];
  {
    const FaultProxy proxy(parse_address(socket("p")), parse_address(bad->address()));
    const auto servers = connect({proxy.address(), good->address()}, good->build());
    hello[0] = proxy.to_client();
    hello[1] = proxy.to_server();
    tasks.run(*servers, pass);
    EXPECT_TRUE(tasks.outputs(pass) == expected);
    EXPECT_EQ(servers->use()[0].tasks, 3);
    bytes[0] = proxy.to_client() - hello[0];
    bytes[1] = proxy.to_server() - hello[1];
  }
  for (const Point& point : kPoints) {
    const auto at =
        static_cast<std::int64_t>(point.part * static_cast<double>(bytes[point.to_server ? 1 : 0]));
    const FaultProxy proxy(parse_address(socket("p")), parse_address(bad->address()),
                           {Fault::What::act, point.to_server, hello[point.to_server ? 1 : 0] + at,
                            [&] { bad->process().signal(signal); }});
    const double timeout = signal == SIGSTOP ? kShortTimeout : kTimeout;
    const auto servers = connect({proxy.address(), good->address()}, good->build(), timeout);
    const auto begin = Clock::now();
    tasks.run(*servers, pass);
    EXPECT_LT(seconds_since(begin), (signal == SIGSTOP ? timeout : 0) + kMoreSeconds)
        << point.to_server << point.part;
    EXPECT_TRUE(tasks.outputs(pass) == expected) << point.to_server << point.part;
    EXPECT_TRUE(proxy.fired());
    EXPECT_FALSE(servers->use()[0].connected);
    if (signal == SIGSTOP) {
      bad->process().signal(SIGCONT);
    } else {
      bad.reset();
      bad = start(socket("bad"));
    }
  }
}

TEST_F(ServeTest, KilledAtAnyPointOfForwardCostsTimeAndNoBit) {
  expect_point_by_point(Pass::forward, SIGKILL);
}
TEST_F(ServeTest, KilledAtAnyPointOfBackwardCostsTimeAndNoBit) {
  expect_point_by_point(Pass::backward, SIGKILL);
}
TEST_F(ServeTest, StoppedAtAnyPointOfForwardCostsItsDeadlineAndNoBit) {
  expect_point_by_point(Pass::forward, SIGSTOP);
}
TEST_F(ServeTest, StoppedAtAnyPointOfBackwardCostsItsDeadlineAndNoBit) {
  expect_point_by_point(Pass::backward, SIGSTOP);
}

TEST_F(ServeTest, WhenAllAreDeadTheCallFails) {
  const auto first = start(socket("a")), second = start("tcp:127.0.0.1:0");
  HeldTasks tasks(layer(), 2);
  const auto servers = connect({first->address(), second->address()}, first->build(), 1);
  tasks.run(*servers, Pass::forward);
  first->process().signal(SIGKILL);
  second->process().signal(SIGSTOP);
  const auto begin = Clock::now();
  expect_error(ExitCode::hang, second->address() + ": no answer within 1 s",
               [&] { tasks.run(*servers, Pass::forward); });
  EXPECT_LT(seconds_since(begin), 1 + kMoreSeconds);
}

TEST_F(ServeTest, AHundredStartsAndStopsLeaveNothing) {
  constexpr int kCycles = 100, kTogether = 4;
  HeldTasks tasks({layer()[0]}, 1);
  const auto expected = tasks.expected(Pass::forward);
  const int signals[] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};
  for (int cycle = 0; cycle < kCycles; cycle += kTogether) {
    std::vector<std::future<std::unique_ptr<AttentionServer>>> starting;
    for (int i = 0; i < kTogether; ++i) {
      starting.push_back(std::async(std::launch::async, [this, i] {
        return start(i == 3 ? "tcp:127.0.0.1:0" : socket("s" + std::to_string(i)));
      }));
    }
    for (int i = 0; i < kTogether; ++i) {
      const auto server = starting[static_cast<std::size_t>(i)].get();
      const auto transport = connect({server->address()}, server->build());
      tasks.run(*transport, Pass::forward);
      EXPECT_TRUE(tasks.outputs(Pass::forward) == expected);
      server->process().signal(signals[(cycle / kTogether + i) % 4]);  // while one is connected
      const ProcessResult result = server->process().wait();
      EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
      EXPECT_TRUE(result.out.ends_with("stopped\n")) << result.out;
    }
  }
  std::string left;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
    left += entry.path().filename().string() + " ";
  EXPECT_EQ(left, "token ");
  EXPECT_TRUE(processes_of(folder_.path()).empty());
}

TEST_F(ServeTest, FinishesTheTaskAtHandWhenToldToStop) {
  const auto server = start(socket("s"));
  const TaskCase large{{1500, 1500, 4, 4, 64, 64, runtime::DType::float32}};
  HeldTasks tasks({large}, 1);
  const FaultProxy proxy(parse_address(socket("p")), parse_address(server->address()));
  const auto servers = connect({proxy.address()}, server->build());
  const std::int64_t hello = proxy.to_server();
  std::jthread stopper([&] {
    EXPECT_TRUE(wait_until([&] { return proxy.to_server() - hello > 4'500'000; }, 20));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    server->process().signal(SIGTERM);
  });
  tasks.run(*servers, Pass::backward);
  stopper.join();
  EXPECT_TRUE(tasks.outputs(Pass::backward) == tasks.expected(Pass::backward));
  EXPECT_EQ(server->process().wait().exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "s"));
}

TEST_F(ServeTest, TakesOverTheSocketOfOneThatWasKilled) {
  auto server = start(socket("s"));
  const ProcessResult second =
      run_longhaul({"serve", "--listen", socket("s"), "--token-file", token_});
  EXPECT_EQ(second.exit_code, 69) << second.err;
  EXPECT_TRUE(has(second.err, "a server listens there already")) << second.err;
  server->process().signal(SIGKILL);
  server->process().wait();
  EXPECT_TRUE(std::filesystem::exists(folder_ / "s"));
  server = start(socket("s"));
  HeldTasks tasks(layer(), 1);
  const auto servers = connect({server->address()}, server->build());
  tasks.run(*servers, Pass::forward);
  EXPECT_TRUE(tasks.outputs(Pass::forward) == tasks.expected(Pass::forward));
}

TEST_F(ServeTest, SaysWhatIsWrongWithWhatItIsGiven) {
  const auto serve = [&](const std::string& listen, const std::string& token) {
    return run_longhaul({"serve", "--listen", listen, "--token-file", token});
  };
  ProcessResult result = serve("node7:5000", token_);
  EXPECT_EQ(result.exit_code, 78);
  EXPECT_TRUE(has(result.err, "tcp:HOST:PORT")) << result.err;
  result = serve(socket("s"), folder_.file("none"));
  EXPECT_EQ(result.exit_code, 74);
  EXPECT_TRUE(has(result.err, "make one with")) << result.err;
  ::chmod(token_.c_str(), 0644);
  result = serve(socket("s"), token_);
  EXPECT_EQ(result.exit_code, 78);
  EXPECT_TRUE(has(result.err, "chmod 600 " + token_)) << result.err;
  EXPECT_EQ(run_longhaul({"serve"}).exit_code, 64);
  EXPECT_EQ(
      run_longhaul({"serve", "--listen", socket("s"), "--token-file", token_, "--threads", "0"})
          .exit_code,
      64);
}

TEST_F(ServeTest, RefusesAnotherBuild) {
  const auto server = start(socket("s"));
  expect_error(ExitCode::disagree, "the server is 'longhaul ",
               [&] { connect({server->address()}, "longhaul 0.0.1"); });
  EXPECT_TRUE(has(server->process().said(), "rank 5 (connection 1): is refused: ")) << "no line";
}

}  // namespace
}  // namespace longhaul::test
