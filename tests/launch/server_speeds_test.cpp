// Speeds of attention servers: what plans are made with, and from which step on.
#include "launch/server_speeds.h"

#include <gtest/gtest.h>

#include <cmath>

namespace longhaul::launch {
namespace {

using Speeds = std::vector<std::int64_t>;

void add(ServerSpeeds& speeds, std::int64_t step, const std::vector<double>& pairs_a_second) {
  std::vector<ServedWork> work;
  for (const double rate : pairs_a_second) work.push_back({rate * 0.25, 0.25});
  speeds.add(step, work);
}

TEST(ServerSpeeds, AreThoseOfTheStepBeforeTheLast) {
  ServerSpeeds speeds(3);
  EXPECT_EQ(speeds.of(1), Speeds());
  add(speeds, 1, {3e9, 1e9, 3e9});
  EXPECT_EQ(speeds.of(1), Speeds());
  EXPECT_EQ(speeds.of(2), Speeds()) << "its plans were made while step 1 ran";
  EXPECT_EQ(speeds.of(3), (Speeds{64, 21, 64}));
  add(speeds, 2, {3e9, 3e9, 3e9});
  EXPECT_EQ(speeds.of(3), (Speeds{64, 21, 64})) << "a plan that is late is the same";
  EXPECT_EQ(speeds.of(4), (Speeds{64, 46, 64})) << "64 (0.75 * 1/3 + 1) / 1.75";
}

TEST(ServerSpeeds, OfWhichNothingIsKnownIsTheFastest) {
  ServerSpeeds speeds(3);
  add(speeds, 1, {0, 0, 0});
  EXPECT_EQ(speeds.of(3), Speeds());
  add(speeds, 2, {0, 2e9, 1e9});
  EXPECT_EQ(speeds.of(4), (Speeds{64, 64, 32}));
  add(speeds, 3, {1e9, 0, 0});
  EXPECT_EQ(speeds.of(5), (Speeds{32, 64, 32})) << "who did nothing keeps its rate";
}

TEST(ServerSpeeds, StayWhereTheyAreUnderNoise) {
  ServerSpeeds speeds(2);
  add(speeds, 1, {1e9, 0.5e9});
  for (std::int64_t step = 2; step < 50; ++step) {
    add(speeds, step, {1e9, (0.5 + 0.02 * std::sin(static_cast<double>(step))) * 1e9});
    EXPECT_EQ(speeds.of(step + 2), (Speeds{64, 32}));
  }
  for (std::int64_t step = 50; step < 80; ++step) add(speeds, step, {1e9, 0.25e9});
  EXPECT_LE(std::abs(speeds.of(81)[1] - 16), 1);
  for (std::int64_t step = 80; step < 120; ++step) add(speeds, step, {1e9, 1e-9});
  EXPECT_EQ(speeds.of(121)[1], 1) << "no server is out of reach";
}

}  // namespace
}  // namespace longhaul::launch
