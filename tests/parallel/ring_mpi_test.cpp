// The ring over MPI processes: right, and bit for bit what threads of one process give.
#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/support/mpi_test.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::AttentionCase;
using test::run_spread;
using test::run_spread_rank;
using test::Spread;
using test::SpreadOptions;
using test::SpreadRank;

constexpr LayoutKind kLayouts[] = {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped};

std::vector<Mask> masks() {
  const std::vector<std::int64_t> offsets{0, 1, 100, 100, 263, 301};
  return {Mask::full(301), Mask::causal(301), Mask::documents(offsets),
          Mask::from_slices(301, {{0, 200, 0, 301, -40, 3}, {250, 301, 5, 6}})};
}

TEST(RingMpi, EqualsLoopbackBitForBitAndTheReference) {
  runtime::Communicator& world = test::mpi_world();
  for (const Mask& mask : masks()) {
    for (const LayoutKind layout : kLayouts) {
      for (const bool bf16 : {false, true}) {
        SCOPED_TRACE(
            runtime::concat(name(layout), " area ", mask.area(), bf16 ? " bfloat16" : " float32"));
        AttentionCase c{301, 301, 4, 2, 32, 32, mask.slices()};
        c.bf16 = bf16;
        c.fill(11);
        const SpreadOptions options{.layout = layout};
        const SpreadRank mine = run_spread_rank(c, options, world);
        // Every rank plays all ranks as threads, so the oracle needs no communication.
        const Spread threads = run_spread(c, options, world.size());
        const SpreadRank& same = threads.ranks[static_cast<std::size_t>(world.rank())];
        EXPECT_EQ(mine.tokens, same.tokens);
        EXPECT_TRUE(mine.rows == same.rows);
        EXPECT_EQ(mine.sent_bytes, same.sent_bytes);
        expect_matches_reference(c, threads.result);
      }
    }
  }
}

TEST(RingMpi, MessagesBeyondTheSizeLimit) {
  // A hop of keys and values is larger than the session's message limit, so it travels in pieces.
  runtime::Communicator& world = test::mpi_world();
  AttentionCase c{static_cast<std::int64_t>(300) * world.size(),
                  static_cast<std::int64_t>(300) * world.size(),
                  2,
                  2,
                  64,
                  64};
  c.bands = Mask::causal(c.q_rows).slices();
  c.fill(12);
  static_assert(300 * 2 * 64 * 4 > test::kMaxMessageBytes);
  const SpreadRank mine = run_spread_rank(c, {}, world);
  const Spread threads = run_spread(c, {}, world.size());
  EXPECT_TRUE(mine.rows == threads.ranks[static_cast<std::size_t>(world.rank())].rows);
}

}  // namespace
}  // namespace longhaul::parallel
