// The ring, executed: every rank count, layout, mask and head group against the fp64 reference, its
// bytes against the count, and its promises: inputs untouched, reruns bitwise equal.
#include <gtest/gtest.h>

#include <thread>

#include "parallel/schemes/scheme.h"
#include "runtime/error.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::AttentionCase;
using test::expect_matches_reference;
using test::run_spread;
using test::Spread;
using test::SpreadOptions;

constexpr LayoutKind kLayouts[] = {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped};

AttentionCase make(const Mask& mask, std::int64_t heads, std::int64_t kv_heads, std::int64_t dim,
                   std::uint32_t seed = 1) {
  AttentionCase c{mask.tokens(), mask.tokens(), heads, kv_heads, dim, dim, mask.slices()};
  c.fill(seed);
  return c;
}

Schedule schedule_of(const AttentionCase& c, const SpreadOptions& options, int ranks,
                     Direction direction) {
  const Mask mask = Mask::from_slices(c.q_rows, c.bands);
  const Layout layout(options.layout, c.q_rows / options.batch, options.batch, ranks);
  const runtime::DType dtype = c.bf16 ? runtime::DType::bfloat16 : runtime::DType::float32;
  SchemeInputs inputs{
      mask,
      layout,
      {static_cast<int>(c.heads), static_cast<int>(c.kv_heads), c.dim, c.value_dim, dtype},
      direction};
  if (options.wire_dtype != runtime::DType::float32) inputs.wire_dtype = options.wire_dtype;
  inputs.options = options.scheme;
  return build_schedule(inputs);
}

void expect_bytes_as_counted(const AttentionCase& c, const SpreadOptions& options,
                             const Spread& spread) {
  const int ranks = static_cast<int>(spread.ranks.size());
  const Schedule forward = schedule_of(c, options, ranks, Direction::forward);
  const Schedule backward = schedule_of(c, options, ranks, Direction::backward);
  for (std::size_t rank = 0; rank < spread.ranks.size(); ++rank) {
    const std::int64_t counted = count(forward.programs[rank], forward.shapes).sent_bytes +
                                 count(backward.programs[rank], backward.shapes).sent_bytes;
    EXPECT_EQ(spread.ranks[rank].sent_bytes, counted) << "rank " << rank;
  }
}

Mask documents(std::vector<std::int64_t> lengths) {
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return Mask::documents(offsets);
}

Mask window(std::int64_t n, std::int64_t width) {
  return Mask::from_slices(n, {{0, n, 0, n, 1 - width, 0}});
}

/// Slices of every type, rows that see nothing, rows under several slices.
Mask assorted(std::int64_t n) {
  const std::int64_t a = n / 5, b = n / 2;
  return Mask::from_slices(n, {{0, a, 0, a, -attention::kUnbounded, 0},
                               {0, a, b, n, 0, attention::kUnbounded},
                               {a + 3, b, 2, b, -7, 2},
                               {b + 1, n, 0, 1},
                               {b + 1, n, b, n, -attention::kUnbounded, -1}});
}

TEST(Ring, EveryRankCountLayoutAndMask) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8}) {
    for (const LayoutKind layout : kLayouts) {
      for (const Mask& mask :
           {Mask::full(127), Mask::causal(127), documents({1, 1, 60, 0, 13, 1, 51}), window(127, 9),
            assorted(127)}) {
        SCOPED_TRACE(runtime::concat("P=", ranks, " ", name(layout), " area ", mask.area()));
        const AttentionCase c = make(mask, 4, 2, 16);
        const SpreadOptions options{.layout = layout};
        const Spread spread = run_spread(c, options, ranks);
        expect_matches_reference(c, spread.result);
        expect_bytes_as_counted(c, options, spread);
      }
    }
  }
}

TEST(Ring, NastyLengths) {
  for (const std::int64_t n : {1, 2, 7, 1000}) {  // empty ranks, and many tiles a rank
    for (const int ranks : {3, 5, 7, 8}) {
      for (const LayoutKind layout : kLayouts) {
        SCOPED_TRACE(runtime::concat("n=", n, " P=", ranks, " ", name(layout)));
        const AttentionCase c = make(Mask::causal(n), 2, 1, n == 1000 ? 32 : 8);
        const SpreadOptions options{.layout = layout};
        const Spread spread = run_spread(c, options, ranks);
        expect_matches_reference(c, spread.result);
        expect_bytes_as_counted(c, options, spread);
      }
    }
  }
}

TEST(Ring, HeadGroups) {
  for (const std::int64_t group : {1, 4, 8}) {
    for (const LayoutKind layout : kLayouts) {
      SCOPED_TRACE(runtime::concat("group ", group, " ", name(layout)));
      const AttentionCase c = make(Mask::causal(203), 8, 8 / group, 24);
      expect_matches_reference(c, run_spread(c, {.layout = layout}, 3).result);
    }
  }
}

TEST(Ring, DocumentsOfOneTokenAndAcrossEveryRank) {
  std::vector<std::int64_t> ones(64, 1);
  for (const Mask& mask :
       {documents(ones), documents({64}), documents({1, 62, 1}), documents({31, 1, 32})}) {
    for (const LayoutKind layout : kLayouts) {
      const AttentionCase c = make(mask, 2, 2, 8);
      const SpreadOptions options{.layout = layout};
      const Spread spread = run_spread(c, options, 7);
      expect_matches_reference(c, spread.result);
      expect_bytes_as_counted(c, options, spread);
    }
  }
}

TEST(Ring, BatchesOfSequences) {
  // Three sequences with a mask each, as one token axis.
  const std::vector<Mask> masks{Mask::causal(50), documents({20, 30}), Mask::full(50)};
  const Mask mask = Mask::concatenated(masks);
  for (const int ranks : {1, 2, 3, 4}) {
    for (const LayoutKind layout : kLayouts) {
      SCOPED_TRACE(runtime::concat("P=", ranks, " ", name(layout)));
      const AttentionCase c = make(mask, 4, 2, 8);
      const SpreadOptions options{.layout = layout, .batch = 3};
      const Spread spread = run_spread(c, options, ranks);
      expect_matches_reference(c, spread.result);
      expect_bytes_as_counted(c, options, spread);
    }
  }
}

TEST(Ring, Bfloat16) {
  for (const runtime::DType wire : {runtime::DType::float32, runtime::DType::bfloat16}) {
    AttentionCase c{300, 300, 4, 2, 32, 32, Mask::causal(300).slices()};
    c.bf16 = true;
    c.fill(3);
    const SpreadOptions options{.wire_dtype = wire};
    const Spread spread = run_spread(c, options, 5);
    expect_bytes_as_counted(c, options, spread);
    if (wire == runtime::DType::float32) {
      expect_matches_reference(c, spread.result);
      continue;
    }
    // Four hops round an accumulator to 8 bits each, so each adds at most 2^-9 of it.
    const auto exact = test::run_reference<double>(c);
    EXPECT_LE(test::relative_error(spread.result.dk, exact.dk), 6e-3 + 4.0 / 512);
    EXPECT_LE(test::relative_error(spread.result.dv, exact.dv), 6e-3 + 4.0 / 512);
    EXPECT_LE(test::relative_error(spread.result.dq, exact.dq), 6e-3);
    EXPECT_LE(test::relative_error(spread.result.out, exact.out), 4e-3);
  }
}

TEST(Ring, ManyRanks) {
  const AttentionCase c = make(Mask::causal(1021), 2, 1, 16);
  for (const int ranks : {16, 32}) {
    for (const LayoutKind layout : kLayouts) {
      SCOPED_TRACE(runtime::concat("P=", ranks, " ", name(layout)));
      expect_matches_reference(c, run_spread(c, {.layout = layout}, ranks).result);
    }
  }
}

TEST(Ring, LargeLogits) {
  AttentionCase c = make(Mask::causal(200), 2, 1, 16);
  c.scoring.scale *= 30;
  for (const LayoutKind layout : kLayouts)
    expect_matches_reference(c, run_spread(c, {.layout = layout}, 4).result);
}

TEST(Ring, RerunsAreBitwiseEqual) {
  const AttentionCase c = make(documents({100, 3, 150, 47}), 4, 2, 16);
  for (const LayoutKind layout : kLayouts) {
    const Spread first = run_spread(c, {.layout = layout}, 5);
    // Again, in one go with buffers reused, with more threads, and with messages that come late.
    EXPECT_TRUE(first.result == run_spread(c, {.layout = layout, .repeats = 3}, 5).result);
    EXPECT_TRUE(first.result == run_spread(c, {.layout = layout, .threads = 2}, 5).result);
    runtime::LoopbackOptions late;
    late.latency_seconds = 0.003;
    EXPECT_TRUE(first.result == run_spread(c, {.layout = layout}, 5, late).result);
  }
}

}  // namespace
}  // namespace longhaul::parallel
