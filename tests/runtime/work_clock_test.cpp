#include "runtime/work_clock.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/support/timing.h"

namespace longhaul::runtime {
namespace {

using std::chrono::milliseconds;

TEST(WorkClock, AddsUpStretchesAndNothingBetween) {
  // A busy machine makes stretches longer, never shorter.
  const double seconds = test::least_of_attempts(0.08, [](int) {
    const Stream stream = Stream::cpu("s");
    WorkClock clock;
    for (int i = 0; i < 3; ++i) {
      clock.start(stream);
      stream.cpu_task([] { std::this_thread::sleep_for(milliseconds(10)); });
      stream.cpu_task([] { std::this_thread::sleep_for(milliseconds(10)); });
      clock.stop(stream, 5 + i);
      stream.cpu_task([] { std::this_thread::sleep_for(milliseconds(20)); });
    }
    stream.synchronize(deadline_in(10));
    const WorkTimes times = clock.times();
    EXPECT_EQ(times.work, 5 + 6 + 7);
    EXPECT_GE(times.seconds, 0.06);
    EXPECT_LT(times.cpu_seconds, 0.03) << "sleeping takes no CPU time";
    return times.seconds;
  });
  EXPECT_LT(seconds, 0.08);
}

TEST(WorkClock, AddsInTheStreamsOrder) {
  const Stream stream = Stream::cpu("s");
  WorkTimes before;
  {
    WorkClock clock;
    clock.add(stream, {0.25, 0.125, 7});
    stream.cpu_task([&] { before = clock.times(); });
    stream.synchronize(deadline_in(10));
    clock.start(stream);
    stream.cpu_task([] { std::this_thread::sleep_for(milliseconds(5)); });
    clock.stop(stream, 1);
  }  // gone before the work is over
  stream.synchronize(deadline_in(10));
  EXPECT_EQ(before.seconds, 0.25);
  EXPECT_EQ(before.cpu_seconds, 0.125);
  EXPECT_EQ(before.work, 7);
}

}  // namespace
}  // namespace longhaul::runtime
