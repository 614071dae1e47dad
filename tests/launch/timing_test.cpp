// How benchmarks measure: quartiles known by hand, and how often what is timed runs.
#include "launch/timing.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "launch/longest.h"
#include "runtime/error.h"

namespace longhaul::launch {
namespace {

using runtime::Stream;

TEST(Timing, QuartilesAreThoseByHand) {
  const Spread five = spread_of({5, 1, 4, 2, 3});
  EXPECT_EQ(five.count, 5);
  EXPECT_EQ(five.least, 1);
  EXPECT_EQ(five.lower, 2);
  EXPECT_EQ(five.median, 3);
  EXPECT_EQ(five.upper, 4);
  EXPECT_EQ(five.most, 5);
  const Spread even = spread_of({10, 40, 20, 30});
  EXPECT_DOUBLE_EQ(even.lower, 17.5);
  EXPECT_DOUBLE_EQ(even.median, 25);
  EXPECT_DOUBLE_EQ(even.upper, 32.5);
  const Spread one = spread_of({7});
  EXPECT_EQ(one.lower, 7);
  EXPECT_EQ(one.upper, 7);
  EXPECT_THROW(spread_of({}), runtime::Error);
}

TEST(Timing, RepetitionsFillTheirTime) {
  const Repeats repeats{.warm_up = 1, .most = 20, .least = 3, .seconds = 1};
  EXPECT_EQ(repetitions(repeats, 1e-9), 20);
  EXPECT_EQ(repetitions(repeats, 0), 20);
  EXPECT_EQ(repetitions(repeats, 0.1), 10);
  EXPECT_EQ(repetitions(repeats, 60), 3);
  EXPECT_EQ(repetitions({.most = 2, .least = 3, .seconds = 0}, 60), 2);
}

TEST(Timing, EveryRepetitionIsTimedAndNoWarmUp) {
  const Stream stream = Stream::cpu("timed");
  int enqueued = 0;
  std::atomic<int> run{0};
  const Spread spread = time_on_stream(stream, {.warm_up = 2, .most = 5, .seconds = 60}, [&] {
    const bool warm_up = ++enqueued <= 2;
    stream.cpu_task([&run, warm_up] {
      ++run;
      std::this_thread::sleep_for(std::chrono::milliseconds(warm_up ? 200 : 10));
    });
  });
  EXPECT_EQ(enqueued, 7);
  EXPECT_EQ(run, 7);
  EXPECT_EQ(spread.count, 5);
  EXPECT_GE(spread.least, 0.01);
  EXPECT_LT(spread.least, 0.2);
}

TEST(Timing, RatiosAreThoseOfOneTurn) {
  // A device that becomes twice as slow half way: the medians lie in different halves, the turns
  // tell what is true.
  const Turns turns({{10, 10, 20, 20, 20}, {9, 9, 9, 18, 18}});
  EXPECT_DOUBLE_EQ(turns.ratio(1, 0), 0.9);
  EXPECT_DOUBLE_EQ(turns.spread(0).median, 20);
  EXPECT_DOUBLE_EQ(turns.spread(1).median, 9);
}

TEST(Timing, SeveralTakeTurns) {
  const Stream stream = Stream::cpu("timed");
  std::string order;
  const auto work = [&](char letter) {
    return [&order, &stream, letter] { stream.cpu_task([&order, letter] { order += letter; }); };
  };
  const Turns turns = time_in_turn(stream, {.warm_up = 1, .most = 3, .seconds = 60},
                                   {work('a'), work('b'), work('c')});
  EXPECT_EQ(order, "abcabcabcabc");
  EXPECT_EQ(turns.spread(2).count, 3);
}

TEST(Timing, ErrorsOfWhatIsTimedAreTold) {
  const Stream stream = Stream::cpu("timed");
  EXPECT_THROW(time_on_stream(stream, {},
                              [&] {
                                stream.cpu_task([] {
                                  throw runtime::Error(runtime::ExitCode::internal, "broken");
                                });
                              }),
               runtime::Error);
}

TEST(Longest, IsTheLargestMultipleThatFits) {
  const auto bytes_of = [](std::int64_t tokens) { return 1000 + 3 * tokens; };
  for (const std::int64_t unit : {1, 7, 64}) {
    for (const std::int64_t available : {1003, 1021, 1022, 4000, 123'457}) {
      std::int64_t expected = 0;
      for (std::int64_t tokens = unit; bytes_of(tokens) <= available; tokens += unit)
        expected = tokens;
      EXPECT_EQ(longest_fitting(unit, available, bytes_of), expected) << unit << " " << available;
    }
  }
  EXPECT_EQ(longest_fitting(64, 999, bytes_of), 0);
}

}  // namespace
}  // namespace longhaul::launch
