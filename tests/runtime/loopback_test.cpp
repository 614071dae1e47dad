// What loopback promises beyond the communicator suite: time, failure and the flight recorder.
#include "runtime/comm/loopback.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "runtime/flight.h"
#include "tests/support/timing.h"

namespace longhaul::runtime {
namespace {

using std::chrono::milliseconds;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double process_cpu_seconds() {
  rusage usage = {};
  EXPECT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void pass_on(Communicator& world, const Tensor& from, const Tensor& to, const Stream& stream) {
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  world.exchange({{next, {from}}}, {{previous, {to.view()}}}, "pass on", stream);
}

TEST(Loopback, MissingPeerIsAHangThatNamesIt) {
  std::atomic<int> hangs{0};
  run_loopback(3, {.timeout_seconds = 0.3}, [&](std::unique_ptr<Communicator> world) {
    const auto group = world->split(0, 0, "context");
    if (group->rank() == 1) return;
    const Stream stream = Stream::cpu("comm");
    const Tensor in({5}, DType::float32, stream);
    const Clock::time_point begin = Clock::now();
    group->exchange({}, {{1, {in.view()}}}, "ring hop 3", stream);
    try {
      stream.synchronize(deadline_in(10));
    } catch (const Error& error) {
      ++hangs;
      EXPECT_EQ(error.code(), ExitCode::hang);
      const std::string text = error.what();
      for (const std::string& part :
           {concat("rank ", world->rank(), " waited 0.3 s"), std::string("ring hop 3"),
            std::string("'context'"), std::string("for rank 1 (20 bytes to receive)")}) {
        EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
      }
    }
    EXPECT_LT(seconds_since(begin), 5.0);
  });
  EXPECT_EQ(hangs, 2);
}

TEST(Loopback, UnreceivedSendIsAHangToo) {
  run_loopback(2, {.timeout_seconds = 0.2}, [&](std::unique_ptr<Communicator> world) {
    if (world->rank() == 1) return;
    const Stream stream = Stream::cpu("comm");
    const Tensor out({5}, DType::float32, stream);
    world->exchange({{1, {out}}}, {}, "lost", stream);
    EXPECT_THROW(stream.synchronize(deadline_in(10)), Error);
  });
}

TEST(Loopback, AFailedRankReleasesTheOthers) {
  const Clock::time_point begin = Clock::now();
  try {
    run_loopback(7, {.timeout_seconds = 60}, [&](std::unique_ptr<Communicator> world) {
      if (world->rank() == 4) {
        std::this_thread::sleep_for(milliseconds(50));
        fail(ExitCode::data, "token 9 of rank 4 is bad");
      }
      const Stream stream = Stream::cpu("comm");
      world->barrier(stream);
      stream.synchronize(deadline_in(100));
    });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::data);
    EXPECT_STREQ(error.what(), "token 9 of rank 4 is bad");
  }
  EXPECT_LT(seconds_since(begin), 10);
}

TEST(Loopback, AFailedTaskReleasesTheOthers) {
  EXPECT_THROW(run_loopback(3, {.timeout_seconds = 60},
                            [&](std::unique_ptr<Communicator> world) {
                              const Stream stream = Stream::cpu("comm");
                              if (world->rank() == 0)
                                stream.cpu_task([] { throw std::length_error("task"); });
                              world->barrier(stream);
                              stream.synchronize(deadline_in(100));
                            }),
               std::length_error);
}

TEST(Loopback, SplitWaitsAreReleasedToo) {
  const Clock::time_point begin = Clock::now();
  EXPECT_THROW(run_loopback(3, {.timeout_seconds = 60},
                            [&](std::unique_ptr<Communicator> world) {
                              if (world->rank() == 0) throw std::length_error("before the split");
                              world->split(0, 0, "never");
                            }),
               std::length_error);
  EXPECT_LT(seconds_since(begin), 10);
}

TEST(Loopback, MessagesTakeLatencyAndBandwidth) {
  run_loopback(2, {.latency_seconds = 0.1, .bandwidth_bytes_per_second = 4e5},
               [&](std::unique_ptr<Communicator> world) {
                 const Stream stream = Stream::cpu("comm");
                 const Tensor out({10'000}, DType::float32, stream),
                     in({10'000}, DType::float32, stream);
                 const Clock::time_point begin = Clock::now();
                 pass_on(*world, out, in, stream);
                 stream.synchronize(deadline_in(10));
                 EXPECT_GE(seconds_since(begin),
                           0.1 + 40'000 / 4e5 - 0.02);  // the peer may have posted a little earlier
               });
}

TEST(Loopback, LatencyOverlapsWithCompute) {
  const double bound = 0.65;
  const double seconds = test::least_of_attempts(bound, [](int) {
    std::atomic<double> slowest = 0;
    run_loopback(3, {.latency_seconds = 0.1}, [&](std::unique_ptr<Communicator> world) {
      const Stream compute = Stream::cpu("compute"), comm = Stream::cpu("comm");
      const Tensor out({100}, DType::float32, comm), in({100}, DType::float32, comm);
      world->barrier(comm);
      comm.synchronize(deadline_in(10));
      const Clock::time_point begin = Clock::now();
      for (int step = 0; step < 4; ++step) {
        pass_on(*world, out, in, comm);
        compute.cpu_task([] { std::this_thread::sleep_for(milliseconds(100)); });
        compute.wait(comm.record());
      }
      compute.synchronize(deadline_in(10));
      const double mine = seconds_since(begin);
      EXPECT_GE(mine, 0.38);
      for (double seen = slowest; seen < mine && !slowest.compare_exchange_weak(seen, mine);) {
      }
    });
    return slowest.load();
  });
  EXPECT_LT(seconds, bound) << "compute 0.4 s and communication 0.4 s ran one after the other";
}

TEST(Loopback, WaitingBurnsNoCpu) {
  const double before = process_cpu_seconds();
  run_loopback(16, {.latency_seconds = 0.4}, [&](std::unique_ptr<Communicator> world) {
    const Stream stream = Stream::cpu("comm");
    world->barrier(stream);
    stream.synchronize(deadline_in(10));
  });
  EXPECT_LT(process_cpu_seconds() - before, 0.2);
}

TEST(Loopback, ManyRanksAreCheap) {
  const Clock::time_point begin = Clock::now();
  run_loopback(64, {}, [&](std::unique_ptr<Communicator> world) {
    const Stream stream = Stream::cpu("comm");
    const Tensor values({1000}, DType::float32, stream);
    fill(values, 1, stream);
    for (int i = 0; i < 3; ++i) world->all_reduce(values, stream);
    stream.synchronize(deadline_in(50));
    EXPECT_EQ(values.as<float>()[999], 64.0f * 64 * 64);
  });
  EXPECT_LT(seconds_since(begin), 20);
}

TEST(Loopback, RecordsOperations) {
  const std::string folder = testing::TempDir() + "loopback_flight";
  FlightRecorder first(folder, 0), second(folder, 1);
  std::string report;
  run_loopback(2, {.recorders = {&first, &second}}, [&](std::unique_ptr<Communicator> world) {
    const Stream stream = Stream::cpu("comm");
    if (world->rank() == 1) {
      std::this_thread::sleep_for(milliseconds(200));
      report = hang_report(folder, 2);
    }
    world->barrier(stream);
    stream.synchronize(deadline_in(10));
  });
  EXPECT_NE(report.find(
                "waits: step none, in 'barrier' (operation 0 of communicator 'world', with rank 1"),
            std::string::npos)
      << report;
  EXPECT_NE(report.find("rank 1"), std::string::npos) << report;
}

TEST(Loopback, RefusesWrongOptions) {
  const auto nothing = [](std::unique_ptr<Communicator>) {};
  EXPECT_THROW(run_loopback(0, {}, nothing), Error);
  EXPECT_THROW(run_loopback(2, {.recorders = {nullptr}}, nothing), Error);
}

}  // namespace
}  // namespace longhaul::runtime
