// What a rank's attention takes: Attention::attend_times().
#include <gtest/gtest.h>

#include "parallel/attention.h"
#include "runtime/comm/loopback.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

constexpr int kHeads = 4, kKvHeads = 2;

Tensor filled(std::initializer_list<std::int64_t> sizes, const Stream& stream) {
  Tensor tensor(sizes, DType::float32, stream);
  runtime::fill(tensor, 0.5, stream);
  return tensor;
}

/// By rank: the times after a forward, and after a backward as well.
struct Times {
  AttendTimes forward, both;
};
std::vector<Times> times_of(const Mask& mask, LayoutKind kind, int ranks, const char* scheme,
                            int threads = 1) {
  std::vector<Times> all(static_cast<std::size_t>(ranks));
  const Layout layout = Layout::make(kind, mask, 1, ranks);
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    const int rank = world->rank();
    const Stream compute = Stream::cpu("compute", threads);
    Attention attention({.scheme = parse_expression(scheme)}, world->split(0, rank, "context"),
                        compute);
    const auto batch = attention.batch(mask, layout);
    const std::int64_t n = layout.rows(rank), d = 8;
    const Tensor q = filled({n, kHeads, d}, compute), k = filled({n, kKvHeads, d}, compute),
                 v = filled({n, kKvHeads, d}, compute), out = filled({n, kHeads, d}, compute),
                 lse = filled({n, kHeads, 2}, compute), delta = filled({n, kHeads}, compute),
                 dq = filled({n, kHeads, d}, compute), dk = filled({n, kKvHeads, d}, compute),
                 dv = filled({n, kKvHeads, d}, compute);
    const attention::Scoring scoring{.scale = 0.3f};
    Times& times = all[static_cast<std::size_t>(rank)];
    EXPECT_EQ(attention.attend_times().pairs, 0);
    const auto forward = attention.forward(*batch, q, k, v, scoring, out, lse);
    forward->finish();
    compute.synchronize(runtime::deadline_in(60));
    times.forward = attention.attend_times();
    const auto backward =
        attention.backward(*batch, {q, k, v, out, lse, delta}, scoring, dq, dk, dv);
    backward->finish();
    compute.synchronize(runtime::deadline_in(60));
    times.both = attention.attend_times();
  });
  return all;
}

TEST(AttendTimes, PairsAreTheMasksOverAllRanks) {
  const std::vector<std::int64_t> documents{0, 1, 128, 128, 331, 500, 509};
  for (const Mask& mask : {Mask::causal(509), Mask::documents(documents), Mask::full(97)}) {
    for (const char* scheme : {"ring", "group_cast", "burst", "disaggregated"}) {
      if (std::string_view(scheme) == "disaggregated" && !mask.is_causal()) continue;  // refused
      for (const int ranks : {1, 3, 5}) {
        std::int64_t forward = 0, both = 0;
        for (const Times& rank : times_of(mask, LayoutKind::zigzag, ranks, scheme)) {
          forward += rank.forward.pairs;
          both += rank.both.pairs;
          EXPECT_EQ(rank.forward.seconds > 0, rank.forward.pairs > 0);
          EXPECT_GE(rank.both.seconds, rank.forward.seconds);
          EXPECT_GE(rank.both.cpu_seconds, rank.forward.cpu_seconds);
        }
        EXPECT_EQ(forward, mask.area() * kHeads) << scheme << " over " << ranks << " ranks";
        EXPECT_EQ(both, 2 * mask.area() * kHeads) << scheme << " over " << ranks << " ranks";
      }
    }
  }
}

TEST(AttendTimes, ARankWithoutPairsTakesNone) {
  // Queries of the second rank see nothing.
  const Mask mask = Mask::from_slices(300, {{0, 100, 0, 100}, {200, 300, 200, 300}});
  const std::vector<Times> times = times_of(mask, LayoutKind::contiguous, 3, "ring");
  EXPECT_EQ(times[1].both.pairs, 0);
  EXPECT_EQ(times[1].both.seconds, 0);
  EXPECT_EQ(times[0].both.pairs, 2 * 100 * 100 * kHeads);
  EXPECT_GT(times[0].both.cpu_seconds, 0);
}

TEST(AttendTimes, CpuTimeIsThatOfTheWholeTeam) {
  const Mask mask = Mask::causal(4001);
  const auto cpu_seconds = [&](int threads) {
    return times_of(mask, LayoutKind::contiguous, 1, "ring", threads)[0].both.cpu_seconds;
  };
  // The same work: by one of four threads it would be a quarter.
  const double alone = cpu_seconds(1), team = cpu_seconds(4);
  EXPECT_GT(team, 0.7 * alone);
}

}  // namespace
}  // namespace longhaul::parallel
