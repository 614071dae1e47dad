// Tasks done by attention servers that are no ranks: whatever happens to servers and bytes on the
// way, results are those of the kernels at home, bit for bit, or there are none.
#include "parallel/disaggregation/external_servers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <optional>

#include "parallel/disaggregation/remote_task.h"
#include "tests/support/expect_error.h"
#include "tests/support/fault_proxy.h"
#include "tests/support/held_tasks.h"
#include "tests/support/served_tasks.h"
#include "tests/support/training_job.h"

namespace longhaul::parallel {
namespace {

using attention::Pass;
using runtime::ExitCode;
using runtime::net::parse_address;
using test::expect_error;
using test::Fault;
using test::FaultProxy;
using test::HeldTasks;
using test::ServedTasks;

constexpr Pass kPasses[] = {Pass::forward, Pass::backward};
constexpr double kTimeout = 20;  // of what is to succeed

class ExternalServersTest : public testing::Test {
 protected:
  std::string socket(const std::string& name) const { return "unix:" + folder_.file(name); }
  std::shared_ptr<ExternalServers> connect(const std::vector<std::string>& addresses,
                                           double timeout = kTimeout) {
    return connect_servers({.addresses = addresses,
                            .token_file = token_,
                            .timeout_seconds = timeout,
                            .name = "rank 5",
                            .say = [this](const std::string& line) { said_ += line + "\n"; }});
  }
  void expect_results(HeldTasks& tasks, TaskTransport& servers) {
    for (const Pass pass : kPasses) {
      tasks.run(servers, pass);
      const auto outputs = tasks.outputs(pass);
      EXPECT_TRUE(outputs == tasks.expected(pass))
          << (pass == Pass::forward ? "for" : "back") << "ward";
    }
  }
  bool said(const std::string& part) const { return said_.find(part) != std::string::npos; }

  const test::TempDirectory folder_;
  const std::string token_ = test::write_token(folder_);
  std::string said_;
};

TEST_F(ExternalServersTest, GiveTheBitsOfTheKernelsAtHome) {
  for (const int count : {1, 2, 3}) {
    std::vector<std::unique_ptr<ServedTasks>> servers;
    std::vector<std::string> addresses;
    for (int i = 0; i < count; ++i) {
      servers.push_back(std::make_unique<ServedTasks>(
          i == 1 ? "tcp:127.0.0.1:0" : socket("s" + std::to_string(i)), token_));
      addresses.push_back(servers.back()->address());
    }
    const auto transport = connect(addresses);
    HeldTasks tasks(test::nasty_task_cases(), count);
    for (int call = 0; call < 2; ++call) expect_results(tasks, *transport);
    EXPECT_EQ(tasks.expected(Pass::backward, 3), tasks.expected(Pass::backward, 1));
    transport->forward({});
    std::int64_t done = 0;
    for (const ServerUse& use : transport->use()) {
      EXPECT_TRUE(use.connected);
      EXPECT_GT(use.pairs, 0);
      EXPECT_GT(use.seconds, 0);
      done += use.tasks;
    }
    EXPECT_EQ(done, 4 * std::ssize(test::nasty_task_cases()));
  }
}

TEST_F(ExternalServersTest, ATaskIsItsBytes) {
  // Rows of wider tensors travel as rows of their own: equal values are equal bytes, twice.
  for (const test::TaskCase& c : test::nasty_task_cases()) {
    test::HeldTask held(c, 3);
    for (int pass = 0; pass < 2; ++pass) {
      const RankTask task = pass == 0 ? RankTask(held.forward(0)) : RankTask(held.backward(0));
      const auto body = encode_task(task), again = encode_task(task);
      EXPECT_TRUE(std::ranges::equal(body.view(), again.view()));
      const RemoteTask decoded = decode_task(body);
      EXPECT_EQ(decoded.bands, task.remote.bands);
      EXPECT_EQ(decoded.shape, task.remote.shape);
      EXPECT_EQ(decoded.scoring, task.remote.scoring);
      EXPECT_EQ(decoded.pass, task.remote.pass);
      for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{64}, body.bytes() - 64}) {
        runtime::net::Body cut(bytes);
        std::copy_n(body.data(), bytes, cut.data());
        expect_error(ExitCode::internal, "a task", [&] { decode_task(cut); });
      }
    }
  }
}

TEST_F(ExternalServersTest, SizesThatDoNotAddUpAreRefused) {
  test::HeldTask held(test::nasty_task_cases()[0], 3);
  const auto body = encode_task(RankTask(held.forward(0)));
  // Any of the ten integers that describe it, made something else.
  for (int field = 0; field < 10; ++field) {
    for (const std::int64_t value :
         {std::int64_t{-1}, std::int64_t{5}, std::int64_t{1} << 39, std::int64_t{1} << 62}) {
      runtime::net::Body changed(body.bytes());
      std::copy_n(body.data(), body.bytes(), changed.data());
      std::memcpy(changed.data() + 8 * field, &value, 8);
      expect_error(ExitCode::internal, "a task", [&] { decode_task(changed); });
    }
  }
}

TEST_F(ExternalServersTest, OfAnotherTokenOrBuildAreRefusedOnBothSides) {
  const ServedTasks server(socket("s"), token_),
      other(socket("o"), token_, [](TaskServerOptions&o) { o.build = "another build"; }),
      stranger(socket("t"), test::write_token(folder_, "token2", "fedcba9876543210"));
  expect_error(ExitCode::disagree, "attention server " + other.address() + ": it refuses: ", [&] {
    connect({server.address(), other.address()});
  });
  expect_error(ExitCode::disagree, "token", [&] { connect({stranger.address()}); });
  EXPECT_NE(other.said().find("rank 5 (connection 1): is refused: the server is 'another build'"),
            std::string::npos)
      << other.said();
  EXPECT_NE(stranger.said().find("is refused: its token"), std::string::npos) << stranger.said();
  HeldTasks tasks(test::nasty_task_cases(), 1);  // others are served as before
  expect_results(tasks, *connect({server.address()}));
}

TEST_F(ExternalServersTest, ThatAreNotThereAtTheStartAreNamed) {
  const ServedTasks server(socket("s"), token_);
  const auto begin = std::chrono::steady_clock::now();
  expect_error(ExitCode::launch, "attention server " + socket("none") + ": no connection", [&] {
    connect({server.address(), socket("none")}, 0.5);
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(3));
  expect_error(ExitCode::config, "twice", [&] { connect({socket("a"), socket("a")}); });
  expect_error(ExitCode::config, "no addresses", [&] { connect({}); });
  std::optional<ServedTasks> late;
  std::jthread starter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    late.emplace(socket("late"), token_);
  });
  EXPECT_EQ(connect({socket("late")})->use().size(), 1u);
  starter.join();
}

// Cuts and flipped bits everywhere in a call's bytes, both ways: a few in each frame.
TEST_F(ExternalServersTest, NothingThatWasCutOrAlteredIsUsed) {
  const ServedTasks first(socket("a"), token_), second(socket("b"), token_);
  HeldTasks tasks(std::vector<test::TaskCase>(4, test::nasty_task_cases()[2]), 2);
  std::int64_t hello[2], call[2];
  const auto run = [&](const Fault& fault, Pass pass) {
    FaultProxy proxy(parse_address(socket("p")), parse_address(first.address()), fault);
    const auto transport = connect({proxy.address(), second.address()}, 3);
    hello[0] = proxy.to_client();
    hello[1] = proxy.to_server();
    tasks.run(*transport, pass);
    call[0] = proxy.to_client() - hello[0];
    call[1] = proxy.to_server() - hello[1];
    return proxy.fired();
  };
  for (const Pass pass : kPasses) {
    const auto expected = tasks.expected(pass);
    EXPECT_FALSE(run({}, pass));
    const std::int64_t bytes[2] = {call[0], call[1]}, before[2] = {hello[0], hello[1]};
    for (const Fault::What what : {Fault::What::truncate, Fault::What::flip}) {
      for (const int to_server : {0, 1}) {
        for (const double at : {0.0, 0.002, 0.3, 0.55, 0.999}) {
          Fault fault{what, to_server == 1,
                      before[to_server] +
                          static_cast<std::int64_t>(at * static_cast<double>(bytes[to_server]))};
          EXPECT_TRUE(run(fault, pass)) << at;
          EXPECT_TRUE(tasks.outputs(pass) == expected) << at;
        }
      }
    }
  }
  EXPECT_TRUE(said("altered on the way")) << said_;
  EXPECT_TRUE(said("has closed the connection")) << said_;
}

/// Answers a hello, then every task by what `reply` makes of its frame.
class StrangeServer {
 public:
  using Reply = std::function<runtime::net::Frame(const runtime::net::Frame&)>;
  StrangeServer(const std::string& address, const std::string& token_file, Reply reply)
      : listener_(parse_address(address)), thread_([this, token_file, reply] {
          while (!stop_) {
            if (auto socket = listener_.accept()) talk(*socket, token_file, reply);
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
          }
        }) {}
  ~StrangeServer() {
    stop_ = true;
    thread_.join();
  }

 private:
  void talk(const runtime::net::Socket& socket, const std::string& token, const Reply& reply) {
    using namespace runtime::net;
    try {
      const ServerHello hello(Token::load(token), task_build());
      const auto soon = [] { return runtime::deadline_in(5); };
      send_frame(socket, hello.challenge(), soon());
      send_frame(socket, hello.judge(receive_frame(socket, kMostHelloBytes, soon())).reply, soon());
      while (!stop_) send_frame(socket, reply(receive_frame(socket, 1 << 28, soon())), soon());
    } catch (const runtime::Error&) {
    }
  }
  runtime::net::Listener listener_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

TEST_F(ExternalServersTest, AnswersToWhatWasNotAskedAreNotUsed) {
  using runtime::net::Body;
  using runtime::net::Frame;
  const ServedTasks good(socket("g"), token_);
  const auto answer = [](const Frame& task) {  // of the right size, and wrong
    Body body(decode_task(task.body).answer_bytes());
    std::memset(body.data(), 0x3e, static_cast<std::size_t>(body.bytes()));
    return Frame{kAnswer, task.id, std::move(body)};
  };
  const auto changed = [answer](const std::function<void(Frame&)>& change) {
    return [answer, change](const Frame& task) {
      Frame frame = answer(task);
      change(frame);
      return frame;
    };
  };
  const std::map<std::string, StrangeServer::Reply> strange = {
      {"job", changed([](Frame& f) { f.id.job ^= 1; })},
      {"call", changed([](Frame& f) { f.id.call -= 1; })},
      {"task", changed([](Frame& f) { f.id.task += 1000; })},
      {"attempt", changed([](Frame& f) { f.id.attempt -= 1; })},
      {"kind", changed([](Frame& f) { f.kind = kTask; })},
      {"short", changed([](Frame& f) { f.body = Body(f.body.bytes() - 64); })},
      {"long", changed([](Frame& f) { f.body = Body(f.body.bytes() + (1 << 20)); })},
      {"failure", [](const Frame& f) {
         return Frame{kFailure, f.id, text_body("no mood")};
       }}};
  HeldTasks tasks(test::nasty_task_cases(), 2);
  for (const auto& [name, reply] : strange) {
    const StrangeServer server(socket(name), token_, reply);
    const auto transport = connect({socket(name), good.address()});
    expect_results(tasks, *transport);
    EXPECT_FALSE(transport->use()[0].connected) << name;
    EXPECT_EQ(transport->use()[0].tasks, 0) << name;
    EXPECT_TRUE(said("attention server " + socket(name) + " is lost: it ") ||
                said("attention server " + socket(name) + " is lost: a frame says"))
        << said_;
  }
  EXPECT_TRUE(said("it failed: no mood")) << said_;
}

TEST_F(ExternalServersTest, OneThatIsSilentHasItsTimeAndNoMore) {
  std::atomic<bool> silent = true;
  const ServedTasks good(socket("g"), token_);
  const StrangeServer server(socket("s"), token_, [&](const runtime::net::Frame&) {
    while (silent) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return runtime::net::Frame{};
  });
  HeldTasks tasks(test::nasty_task_cases(), 2);
  const auto transport = connect({socket("s"), good.address()}, 0.4);
  const auto begin = std::chrono::steady_clock::now();
  tasks.run(*transport, Pass::forward);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_TRUE(tasks.outputs(Pass::forward) == tasks.expected(Pass::forward));
  EXPECT_GE(took.count(), 0.4);
  EXPECT_LT(took.count(), 2.4);
  EXPECT_TRUE(said("no answer within 0.4 s")) << said_;
  silent = false;
}

// A rank that has no task for a server, or its answers, when the server stops must not wait for it
// in its next call once more: other ranks have waited meanwhile, and wait for that call.
TEST_F(ExternalServersTest, OneThatStopsIsNotWaitedForAgain) {
  using runtime::net::Frame;
  constexpr double kSeconds = 1;
  const ServedTasks good(socket("g"), token_), idle(socket("i"), token_);
  for (const int pongs_before : {0, 1}) {
    std::atomic<int> pongs = 0;
    std::atomic<bool> silent = pongs_before == 0;
    const std::string address = socket("s" + std::to_string(pongs_before));
    const StrangeServer server(address, token_, [&](const Frame& ping) {
      while (silent) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      ++pongs;
      return Frame{kPong, ping.id, {}};
    });
    HeldTasks some(test::nasty_task_cases(), 1), more(test::nasty_task_cases(), 3);
    const auto transport = connect({good.address(), idle.address(), address}, kSeconds);
    some.run(*transport, Pass::forward);
    EXPECT_TRUE(transport->use()[2].connected);
    EXPECT_TRUE(test::wait_until([&] { return pongs >= pongs_before; }, 5));
    silent = true;
    std::this_thread::sleep_for(std::chrono::duration<double>(1.6 * kSeconds));
    const auto begin = std::chrono::steady_clock::now();
    more.run(*transport, Pass::backward);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    EXPECT_LT(took.count(), 0.8 * kSeconds) << pongs_before;
    EXPECT_TRUE(more.outputs(Pass::backward) == more.expected(Pass::backward));
    EXPECT_TRUE(transport->use()[1].connected);  // it was idle, and there
    EXPECT_FALSE(transport->use()[2].connected);
    EXPECT_TRUE(said("attention server " + address + " is lost: no answer within")) << said_;
    silent = false;
  }
}

TEST_F(ExternalServersTest, OneThatComesBackIsGivenTasksAgain) {
  const ServedTasks good(socket("g"), token_);
  auto server = std::make_unique<ServedTasks>(socket("s"), token_);
  HeldTasks tasks(test::nasty_task_cases(), 2);
  const auto transport = connect({socket("s"), good.address()});
  server.reset();
  expect_results(tasks, *transport);
  EXPECT_FALSE(transport->use()[0].connected);
  server = std::make_unique<ServedTasks>(socket("s"), token_);
  EXPECT_TRUE(test::wait_until(
      [&] {
        tasks.run(*transport, Pass::forward);
        return transport->use()[0].connected;
      },
      10));
  EXPECT_TRUE(said("attention server " + socket("s") + " is back")) << said_;
  const std::int64_t before = transport->use()[0].tasks;
  expect_results(tasks, *transport);
  EXPECT_GT(transport->use()[0].tasks, before);
}

TEST_F(ExternalServersTest, TheLastOneMayBeStartedAgainBetweenCalls) {
  auto server = std::make_unique<ServedTasks>(socket("s"), token_);
  HeldTasks tasks(test::nasty_task_cases(), 1);
  const auto transport = connect({socket("s")});
  expect_results(tasks, *transport);
  server.reset();
  server = std::make_unique<ServedTasks>(socket("s"), token_);
  expect_results(tasks, *transport);
}

TEST_F(ExternalServersTest, WhenNoneIsLeftTheCallSaysWhatBecameOfEach) {
  auto first = std::make_unique<ServedTasks>(socket("a"), token_),
       second = std::make_unique<ServedTasks>(socket("b"), token_);
  HeldTasks tasks(test::nasty_task_cases(), 2);
  const auto transport = connect({socket("a"), socket("b")});
  expect_results(tasks, *transport);
  first.reset();
  second.reset();
  for (const std::string& name : {socket("a"), socket("b")})
    expect_error(ExitCode::hang, name + ": the other side has closed the connection; tried again: ",
                 [&] { tasks.run(*transport, Pass::forward); });
}

TEST_F(ExternalServersTest, ServeManyRanksAtOnceAndSurviveBadOnes) {
  const ServedTasks server(socket("s"), token_, [](TaskServerOptions& o) {
    o.hello_seconds = 0.3;
    o.frame_seconds = 0.3;
    o.most_task_bytes = 1 << 20;
  });
  const auto address = parse_address(server.address());
  const runtime::net::Socket mute = connect_to(address, runtime::deadline_in(5)),
                             stuck = connect_to(address, runtime::deadline_in(5)),
                             noise = connect_to(address, runtime::deadline_in(5));
  const std::vector<std::byte> zeros(4096);
  EXPECT_EQ(noise.write(zeros.data(), std::ssize(zeros)), std::ssize(zeros));
  const runtime::net::Token token = runtime::net::Token::load(token_);
  client_hello(stuck, token, task_build(), "stuck", runtime::deadline_in(5));
  EXPECT_EQ(stuck.write(reinterpret_cast<const std::byte*>("LHAS"), 4), 4);  // and no more

  std::vector<std::thread> ranks;
  for (unsigned rank = 0; rank < 5; ++rank) {
    ranks.emplace_back([&, rank] {
      HeldTasks tasks(test::nasty_task_cases(), 1, rank);
      const auto transport = connect_servers(
          {.addresses = {server.address()}, .token_file = token_, .timeout_seconds = kTimeout});
      for (int call = 0; call < 3; ++call) expect_results(tasks, *transport);
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_TRUE(test::wait_until(
      [&] {
        const std::string text = server.said();
        return text.find("does not say hello") != std::string::npos &&
               text.find("stuck (connection 2): is dropped: it stands still") != std::string::npos;
      },
      5))
      << server.said();

  HeldTasks large({{{600, 600, 4, 4, 64, 64, runtime::DType::float32}}}, 1);
  const auto transport = connect({server.address()});
  expect_error(ExitCode::hang, "no attention server is left",
               [&] { large.run(*transport, Pass::forward); });
  EXPECT_NE(server.said().find("expected at most 1048576"), std::string::npos) << server.said();
}

}  // namespace
}  // namespace longhaul::parallel
