#include "runtime/ordered_work.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

namespace longhaul::runtime {
namespace {

TEST(OrderedWork, GivesResultsInTheOrderOfTheWork) {
  for (const int threads : {1, 2, 7}) {
    OrderedWork<int> work(threads, "test");
    for (int i = 0; i < 100; ++i) {
      work.give([i] {
        if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        if (i == 55) fail(ExitCode::data, "fifty-five");
        return i;
      });
    }
    EXPECT_EQ(work.pending(), 100);
    for (int i = 0; i < 100; ++i) {
      if (i == 55) {
        EXPECT_THROW(work.take(), Error);
      } else {
        EXPECT_EQ(work.take(), i);
      }
    }
    EXPECT_EQ(work.pending(), 0);
    EXPECT_THROW(work.take(), Error);
  }
}

TEST(OrderedWork, IsDoneBySeveralThreadsAtOnceAndDroppedWhereItHasNotBegun) {
  std::atomic<int> inside = 0, done = 0;
  {
    OrderedWork<int> work(3, "test");
    for (int i = 0; i < 3; ++i) {
      work.give([&] {
        ++inside;
        while (inside < 3) std::this_thread::yield();  // each waits for the others
        return ++done;
      });
    }
    for (int i = 0; i < 3; ++i) work.take();
    for (int i = 0; i < 1000; ++i) {
      work.give([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return ++done;
      });
    }
  }
  EXPECT_LT(done, 500);
}

}  // namespace
}  // namespace longhaul::runtime
