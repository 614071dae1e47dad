#include "runtime/occupy.h"

#include <gtest/gtest.h>

#include <thread>

#include "runtime/peak.h"
#include "tests/support/timing.h"

namespace longhaul::runtime {
namespace {

using std::chrono::milliseconds;

void nothing() {}

/// Of the stream, from one event to the next around what `enqueue` enqueues.
template <class Enqueue>
double seconds_of(const Stream& stream, const Enqueue& enqueue) {
  const Event begin = stream.record_timed();
  enqueue();
  const Event end = stream.record_timed();
  stream.synchronize(deadline_in(30));
  return seconds_between(begin, end);
}

TEST(Occupy, LastsAsLongAsItSaysAndNoShorter) {
  for (const double seconds : {0.0, 20e-6, 0.0013, 0.02}) {
    const double over = test::least_of_attempts(0.001, [&](int) {
      const Stream stream = Stream::cpu("s");
      const double took = seconds_of(stream, [&] { occupy(stream, seconds, nothing); });
      EXPECT_GE(took, seconds);
      return took - seconds;
    });
    EXPECT_LT(over, 0.001) << seconds;
  }
}

TEST(Occupy, WorkIsPartOfTheTime) {
  const double took = test::least_of_attempts(0.04, [](int) {
    const Stream stream = Stream::cpu("s");
    bool done = false;
    const double seconds = seconds_of(stream, [&] {
      occupy(stream, 0.03, [&] {
        std::this_thread::sleep_for(milliseconds(20));
        done = true;
      });
    });
    EXPECT_TRUE(done);
    EXPECT_GE(seconds, 0.03);
    return seconds;
  });
  EXPECT_LT(took, 0.04);
}

/// Each sleep is late by some tens of microseconds: 400 of them would be by 20 ms.
TEST(Occupy, ManyInARowDoNotDrift) {
  const double over = test::least_of_attempts(0.002, [](int) {
    const Stream stream = Stream::cpu("s");
    const double took = seconds_of(stream, [&] {
      for (int i = 0; i < 400; ++i) occupy(stream, 500e-6, nothing);
    });
    EXPECT_GE(took, 0.2);
    return took - 0.2;
  });
  EXPECT_LT(over, 0.002);
}

TEST(Occupy, TheNextMakesUpForWhatTookTooLong) {
  const double took = test::least_of_attempts(0.036, [](int) {
    const Stream stream = Stream::cpu("s");
    return seconds_of(stream, [&] {
      occupy(stream, 0.001, [] { std::this_thread::sleep_for(milliseconds(15)); });
      occupy(stream, 0.03, nothing);
    });
  });
  EXPECT_GE(took, 0.031);
  EXPECT_LT(took, 0.036) << "31 ms; 45 without";
}

TEST(Occupy, WhatABlockedStreamHasMadeUpForIsForgotten) {
  const Stream stream = Stream::cpu("s"), other = Stream::cpu("other");
  occupy(stream, 0.001, [] { std::this_thread::sleep_for(milliseconds(15)); });
  stream.synchronize(deadline_in(30));
  other.cpu_task([] { std::this_thread::sleep_for(milliseconds(20)); });
  stream.wait(other.record());
  EXPECT_GE(seconds_of(stream, [&] { occupy(stream, 0.03, nothing); }), 0.03);
}

TEST(Occupy, SleepsWithoutTheProcessor) {
  const Stream stream = Stream::cpu("s");
  double cpu = 0;
  stream.cpu_task([&] { cpu -= thread_cpu_seconds(); });
  for (int i = 0; i < 20; ++i) occupy(stream, 0.005, nothing);
  stream.cpu_task([&] { cpu += thread_cpu_seconds(); });
  stream.synchronize(deadline_in(30));
  EXPECT_LT(cpu, 0.01) << "of 0.1 s; 20 times 50 us are watched";
}

}  // namespace
}  // namespace longhaul::runtime
