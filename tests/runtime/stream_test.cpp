#include "runtime/stream.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "runtime/error.h"
#include "tests/support/timing.h"

namespace longhaul::runtime {
namespace {

using std::chrono::milliseconds;

TEST(Stream, RunsInOrder) {
  const Stream stream = Stream::cpu("s");
  std::vector<int> seen;
  for (int i = 0; i < 1000; ++i) stream.cpu_task([&seen, i] { seen.push_back(i); });
  stream.synchronize(deadline_in(10));
  ASSERT_EQ(seen.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], i);
}

TEST(Stream, StreamsOverlap) {
  const double seconds = test::least_of_attempts(0.35, [](int) {
    const Stream first = Stream::cpu("first"), second = Stream::cpu("second");
    const Clock::time_point begin = Clock::now();
    for (const Stream& stream : {first, second})
      stream.cpu_task([] { std::this_thread::sleep_for(milliseconds(200)); });
    first.synchronize(deadline_in(10));
    second.synchronize(deadline_in(10));
    return std::chrono::duration<double>(Clock::now() - begin).count();
  });
  EXPECT_LT(seconds, 0.35);
}

TEST(Stream, EventsOrderStreams) {
  const Stream producer = Stream::cpu("producer"), consumer = Stream::cpu("consumer");
  for (int round = 0; round < 50; ++round) {
    int value = 0, seen = -1;
    producer.cpu_task([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      value = round + 1;
    });
    consumer.wait(producer.record());
    consumer.cpu_task([&] { seen = value; });
    consumer.synchronize(deadline_in(10));
    EXPECT_EQ(seen, round + 1);
  }
}

TEST(Stream, TimedEventsTellWhenTheStreamReachedThem) {
  const Stream stream = Stream::cpu("s"), other = Stream::cpu("other");
  const Event begin = stream.record_timed();
  stream.cpu_task([] { std::this_thread::sleep_for(milliseconds(30)); });
  const Event middle = stream.record_timed();
  other.wait(middle);
  const Event end = other.record_timed();
  end.synchronize(deadline_in(10));
  EXPECT_GE(seconds_between(begin, middle), 0.03);
  EXPECT_GE(seconds_between(middle, end), 0);
  EXPECT_LE(seconds_between(end, begin), -0.03);
}

TEST(Stream, OnlyEventsThatHaveBeenReachedHaveATime) {
  const Stream stream = Stream::cpu("s");
  std::atomic<bool> go{false};
  const Event begin = stream.record_timed();
  stream.cpu_task([&] {
    while (!go) std::this_thread::yield();
  });
  const Event end = stream.record_timed();
  EXPECT_THROW(seconds_between(begin, end), Error);
  EXPECT_THROW(seconds_between(begin, Event()), Error);
  go = true;
  stream.synchronize(deadline_in(10));
  EXPECT_GE(seconds_between(begin, end), 0);
}

TEST(Stream, AnEventCoversOnlyWhatCameBefore) {
  const Stream stream = Stream::cpu("s");
  std::atomic<bool> go{false};
  const Event before = stream.record();
  stream.cpu_task([&] {
    while (!go) std::this_thread::sleep_for(milliseconds(1));
  });
  before.synchronize(deadline_in(10));
  EXPECT_TRUE(before.complete());
  const Event after = stream.record();
  EXPECT_FALSE(after.complete());
  go = true;
  after.synchronize(deadline_in(10));
  EXPECT_TRUE(after.complete());
  EXPECT_TRUE(Event().complete());
  Event().synchronize(deadline_in(0));
}

TEST(Stream, AnErrorPoisonsAndTravels) {
  const Stream first = Stream::cpu("first"), second = Stream::cpu("second");
  bool later = false, dependent = false;
  const Event before = first.record();
  first.cpu_task([] { fail(ExitCode::data, "bad tokens"); });
  first.cpu_task([&] { later = true; });
  second.wait(first.record());
  second.cpu_task([&] { dependent = true; });
  for (const Stream& stream : {first, second}) {
    for (int again = 0; again < 2; ++again) {
      try {
        stream.synchronize(deadline_in(10));
        ADD_FAILURE() << "no error";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::data);
        EXPECT_STREQ(error.what(), "bad tokens");
      }
    }
  }
  EXPECT_FALSE(later);
  EXPECT_FALSE(dependent);
  before.synchronize(deadline_in(10));
}

TEST(Stream, ADeadlineIsAHang) {
  const Stream stream = Stream::cpu("slow");
  std::atomic<bool> go{false};
  stream.cpu_task([&] {
    while (!go) std::this_thread::sleep_for(milliseconds(1));
  });
  const Clock::time_point begin = Clock::now();
  try {
    stream.synchronize(deadline_in(0.1));
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::hang);
    EXPECT_NE(std::string(error.what()).find("'slow'"), std::string::npos) << error.what();
  }
  EXPECT_GE(Clock::now() - begin, milliseconds(100));
  EXPECT_LT(Clock::now() - begin, milliseconds(2000));
  go = true;
  stream.synchronize(deadline_in(10));
}

TEST(Stream, FinishesItsWorkWhenTheLastHandleGoes) {
  std::atomic<int> done{0};
  {
    const Stream stream = Stream::cpu("s");
    const Stream copy = stream;
    for (int i = 0; i < 10; ++i) {
      copy.cpu_task([&] {
        std::this_thread::sleep_for(milliseconds(2));
        ++done;
      });
    }
  }
  EXPECT_EQ(done, 10);
}

TEST(Stream, TasksKnowTheirThreadsAndRank) {
  set_thread_rank("rank 3");
  const Stream stream = Stream::cpu("s", 2);
  set_thread_rank("");
  int threads = 0;
  std::string rank;
  stream.cpu_task([&] {
    threads = omp_get_max_threads();
    rank = thread_rank();
  });
  stream.synchronize(deadline_in(10));
  EXPECT_EQ(threads, 2);
  EXPECT_EQ(stream.threads(), 2);
  EXPECT_EQ(rank, "rank 3");
  EXPECT_THROW(Stream::cpu("none", 0), Error);
}

TEST(Stream, RefusesCudaInACpuBuild) {
  if (cuda_device_count() > 0) GTEST_SKIP() << "a CUDA device is at hand";
  EXPECT_THROW(Stream::cuda("gpu", 0), Error);
  EXPECT_THROW(Stream::cpu("s").cuda_handle(), Error);
}

}  // namespace
}  // namespace longhaul::runtime
