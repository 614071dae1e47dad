// The block kernels on AMX tiles, beside block_test.cpp and adversity_test.cpp, which run here in
// bfloat16: what is theirs alone.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "runtime/cpu_level.h"
#include "tests/support/attention_kinds.h"
#include "tests/support/block_runner.h"

namespace longhaul::attention {
namespace {

using runtime::concat;
using runtime::CpuLevel;
using runtime::Stream;
using test::AttentionCase;
using test::AttentionResult;
using test::expect_matches_reference;
using test::run_kernel;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

AttentionCase make(std::int64_t q_rows, std::int64_t k_rows, std::int64_t heads,
                   std::int64_t kv_heads, std::int64_t dim, std::int64_t value_dim,
                   std::vector<Slice> bands) {
  AttentionCase c{q_rows, k_rows, heads, kv_heads, dim, value_dim, std::move(bands)};
  c.fill(13);
  return c;
}

std::vector<Slice> causal(std::int64_t q_rows, std::int64_t k_rows, std::int64_t offset = 0) {
  return {{0, q_rows, 0, k_rows, -kUnbounded, offset}};
}

TEST(BlockAmx, KeepsTheBlockContract) {
  const test::BlockDevice device{Stream::cpu("tiles")};
  for (const auto& [name, which, options] : test::block_cases(true)) {
    SCOPED_TRACE(name);
    AttentionCase c = which;
    c.bf16 = true;
    const AttentionResult got = run_block(device, c, options);
    expect_matches_reference(c, got);
    EXPECT_EQ(run_block(device, c, options), got) << "a second run gives other bits";
    test::BlockOptions strided = options;
    strided.strided = true;
    EXPECT_EQ(run_block(device, c, strided), got) << "strided views give other bits";
  }
}

TEST(BlockAmx, HeadDims) {
  struct Dims {
    std::int64_t dim, value_dim;
  };
  for (const auto& [dim, value_dim] :
       {Dims{1, 1}, Dims{31, 33}, Dims{64, 64}, Dims{80, 80}, Dims{96, 96}, Dims{127, 65},
        Dims{128, 128}, Dims{192, 128}, Dims{256, 256}, Dims{24, 288}}) {
    SCOPED_TRACE(concat(dim, "/", value_dim));
    const auto c = make(70, 167, 2, 1, dim, value_dim, causal(70, 167, 90));
    expect_matches_reference(c, run_kernel(c));
  }
}

/// Blocks and steps of both kernels end at multiples of 32, 128 and 256.
TEST(BlockAmx, LengthsAroundBlocks) {
  for (const std::int64_t q_rows : {31, 33, 127, 128, 129}) {
    for (const std::int64_t k_rows : {32, 63, 129, 255, 257}) {
      SCOPED_TRACE(concat(q_rows, " x ", k_rows));
      for (const auto& bands :
           {std::vector<Slice>{{0, q_rows, 0, k_rows}}, causal(q_rows, k_rows, 40)}) {
        const auto c = make(q_rows, k_rows, 1, 1, 16, 16, bands);
        expect_matches_reference(c, run_kernel(c));
      }
    }
  }
}

/// Few items share out their keys; many do not. Threads change no bit of either.
TEST(BlockAmx, SharedKeysAndThreads) {
  for (const std::int64_t heads : {1, 3, 16}) {
    for (const std::int64_t k_rows : {100, 700, 1500}) {
      SCOPED_TRACE(concat(heads, " heads, ", k_rows, " keys"));
      auto c = make(40, k_rows, heads, heads, 16, 16, causal(40, k_rows, k_rows - 300));
      for (std::size_t i = 0; i < c.q.size(); ++i) c.q[i] *= 4;
      const AttentionResult one = run_kernel(c);
      expect_matches_reference(c, one);
      for (const int threads : {2, 5}) EXPECT_EQ(run_kernel(c, {.threads = threads}), one);
    }
  }
}

TEST(BlockAmx, OneDocumentNeverTouchesAnother) {
  const auto plain = test::scoring_kinds()[0];
  for (const std::int64_t split : {1, 50, 128, 175, 256}) {
    SCOPED_TRACE(split);
    const test::TwoDocuments clean(300, split, plain);
    const AttentionResult expected = clean.second(run_kernel(clean.which));
    const std::vector<std::function<float(float)>> changes{
        [](float x) { return -3 * x + 1; }, [](float) { return kNaN; },
        [](float x) { return x > 0 ? kInfinity : -kInfinity; }};
    for (const auto& change : changes) {
      test::TwoDocuments changed(300, split, plain);
      changed.replace_first(change);
      EXPECT_EQ(changed.second(run_kernel(changed.which)), expected);
    }
  }
}

/// Scores that rise and fall by far more than 2^8 from key block to key block, and by less.
TEST(BlockAmx, ReferencesThatMove) {
  for (const float rise : {0.1f, 2.0f, 20.0f, -20.0f}) {
    SCOPED_TRACE(rise);
    auto c = make(9, 900, 32, 1, 32, 32, causal(9, 900, 870));  // one item has all keys of a row
    for (std::size_t i = 0; i < c.q.size(); i += 32) c.q[i] = 4;
    for (std::size_t i = 0; i < c.k.size(); i += 32)
      c.k[i] = rise * static_cast<float>(i / 32 / 100) * (i / 32 % 7 == 0 ? 1.0f : 0.5f);
    expect_matches_reference(c, run_kernel(c));
    expect_matches_reference(c, run_kernel(c, {.key_cuts = {333}}));
  }
}

AttentionResult at_level(CpuLevel level, const AttentionCase& c) {
  const CpuLevel before = runtime::cpu_level();
  runtime::set_cpu_level(level);
  AttentionResult result = run_kernel(c);
  runtime::set_cpu_level(before);
  return result;
}

/// Scores of -infinity weigh 0, however many come first.
TEST(BlockAmx, ScoresOfMinusInfinityAreAsUnseen) {
  for (const std::int64_t heads : {1, 32}) {  // with and without parts
    auto c = make(20, 300, heads, 1, 16, 16, {{0, 20, 0, 300}}), cut = c;
    for (std::size_t i = 0; i < c.q.size(); i += 16) c.q[i] = cut.q[i] = 1;
    for (std::size_t i = 0; i < 140 * 16; i += 16) c.k[i] = -kInfinity;
    cut.bands = {{0, 20, 140, 300}};
    const AttentionResult got = run_kernel(c), expected = run_kernel(cut);
    EXPECT_EQ(got.out, expected.out);
    EXPECT_EQ(got.lse, expected.lse);
    c.bands = {{0, 20, 0, 140}};  // and nothing else
    const AttentionResult none = run_kernel(c);
    EXPECT_EQ(none.out, std::vector<float>(none.out.size()));
    EXPECT_EQ(none.lse, std::vector<float>(none.lse.size(), -kInfinity));
  }
}

/// Infinities and NaN of single elements reach what the kernels without tiles let them reach, in
/// full tiles and in partial ones, and change no bit of anything else that they do not weigh in.
TEST(BlockAmx, WhatIsNotFiniteShowsWhereItIsSeen) {
  const std::int64_t n = 300, dim = 40;
  const auto clean = make(n, n, 2, 1, dim, dim, causal(n, n));
  const AttentionResult expected = run_kernel(clean);
  for (auto tensor :
       {&AttentionCase::q, &AttentionCase::k, &AttentionCase::v, &AttentionCase::dout}) {
    for (const float bad : {kNaN, kInfinity, -kInfinity}) {
      // An infinite query has an LSE of NaN, and without tiles a score of -infinity weighs 0 still.
      if (tensor == &AttentionCase::q && bad == bad) continue;
      SCOPED_TRACE(bad);
      auto c = clean;
      (c.*tensor)[(c.*tensor).size() / 2 + 33] = bad;
      const AttentionResult got = run_kernel(c), wide = at_level(CpuLevel::avx512, c);
      for (auto values : {&AttentionResult::out, &AttentionResult::lse, &AttentionResult::dq,
                          &AttentionResult::dk, &AttentionResult::dv}) {
        for (std::size_t i = 0; i < (got.*values).size(); ++i) {
          const float x = (got.*values)[i];
          ASSERT_EQ(std::isfinite(x), std::isfinite((wide.*values)[i])) << i << ": " << x;
        }
      }
      if (tensor != &AttentionCase::v) continue;
      for (std::size_t i = 0; i < got.out.size(); ++i) {  // only sums over that element differ
        if (i % dim == 33 && i >= got.out.size() / 2) continue;
        ASSERT_EQ(got.out[i], expected.out[i]) << i;
      }
    }
  }
}

/// Keys that only pad a tile would weigh exp(-LSE), which is infinite here.
TEST(BlockAmx, PaddingWeighsNothing) {
  for (const std::int64_t k_rows : {1, 45, 255}) {
    SCOPED_TRACE(k_rows);
    auto c = make(64, k_rows, 2, 1, 24, 24, {{0, 64, 0, k_rows}});
    test::share_offset(c, -1008);
    expect_matches_reference(c, run_kernel(c));
  }
}

TEST(BlockAmx, ComputesPlainSoftmaxAndLeavesTheRest) {
  for (const auto& scoring : test::scoring_kinds()) {
    for (const bool bf16 : {true, false}) {
      SCOPED_TRACE(concat(scoring.name, bf16 ? " bf16" : ""));
      AttentionCase c{60, 70, 2, 1, 24, 24, causal(60, 70)};
      c.bf16 = bf16;
      c.fill(3);
      scoring.apply(c);
      const bool tiles = bf16 && !c.sigmoid() && c.scoring.softcap == 0;
      EXPECT_EQ(at_level(CpuLevel::amx, c).out != at_level(CpuLevel::avx512, c).out, tiles);
      EXPECT_EQ(at_level(CpuLevel::amx, c).dk != at_level(CpuLevel::avx512, c).dk, tiles);
    }
  }
  auto negative = make(60, 70, 2, 1, 24, 24, causal(60, 70));
  negative.scoring.scale = -0.2f;
  EXPECT_EQ(at_level(CpuLevel::amx, negative), at_level(CpuLevel::avx512, negative));
  expect_matches_reference(negative, run_kernel(negative));
  auto flat = make(60, 70, 2, 1, 24, 24, causal(60, 70));
  flat.scoring.scale = 0;
  expect_matches_reference(flat, run_kernel(flat));
}

}  // namespace
}  // namespace longhaul::attention
