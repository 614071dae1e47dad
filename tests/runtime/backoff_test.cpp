// How late a polled wait can see what it waits for.
#include "runtime/backoff_impl.h"

#include <gtest/gtest.h>

#include <ctime>

namespace longhaul::runtime::detail {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

TEST(Backoff, SleepsAnEighthOfTheWaitAtMost) {
  EXPECT_EQ(Backoff::after(nanoseconds(0)), nanoseconds(0));
  EXPECT_EQ(Backoff::after(microseconds(49)), nanoseconds(0));
  EXPECT_EQ(Backoff::after(microseconds(80)), microseconds(10));
  EXPECT_EQ(Backoff::after(microseconds(800)), microseconds(100));
  EXPECT_EQ(Backoff::after(std::chrono::hours(1)), microseconds(200));
}

/// Polls until `lasts` and counts.
int polls(std::chrono::milliseconds lasts) {
  Backoff backoff;
  const auto end = Clock::now() + lasts;
  int polls = 0;
  for (; Clock::now() < end; ++polls) backoff.pause();
  return polls;
}

TEST(Backoff, ALongWaitBurnsNoCore) {
  const std::clock_t before = std::clock();
  polls(std::chrono::milliseconds(300));
  const double seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 0.1);
}

}  // namespace
}  // namespace longhaul::runtime::detail
