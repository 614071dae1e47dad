// The kernels of linear attention against the token recurrence in double.
#include "attention/linear.h"

#include <gtest/gtest.h>

#include "tests/support/linear_contract.h"

namespace longhaul::attention {
namespace {

using test::expect_matches_reference;
using test::Gates;
using test::linear_case;
using test::LinearCase;
using test::run_linear;

std::string text(const LinearCase& c) {
  return runtime::concat(kind_of(c.recurrence), " ", c.shape.rows, "x", c.shape.heads, "/",
                         c.shape.key_heads, " d=", c.shape.dim, " e=", c.shape.value_dim);
}

TEST(Linear, KeepsTheContract) {
  for (const char* kind : recurrence_kinds()) {
    test::expect_any_rows(kind, {}, {1, 7, 16, 63, 64, 65, 127, 257});
    test::expect_any_dims(kind, {}, {1, 7, 16, 80, 127, 129});  // panels: alone, even, uneven
    test::expect_empty_sizes(kind, {});
    test::expect_bfloat16(kind, {});
  }
  test::expect_whole_sequence({});
  test::expect_slope_gradients_added({});
}

TEST(Linear, ConstantSlopesOverManyChunks) {
  for (const char* kind : {"decay", "scalar", "vector", "gated_delta"})
    test::expect_constant_slopes(kind, {});
}

TEST(Linear, GatesFromSlowToMinus104) {
  for (const char* kind : {"decay", "scalar", "vector", "gated_delta", "kda"})
    test::expect_any_gates(kind, {}, 257);
  for (const char* kind : {"delta", "gated_delta", "kda"}) {
    LinearCase c = linear_case(kind, {257, 2, 2, 32, 16});
    c.fill(5, Gates::slow, 2);
    expect_matches_reference(c, run_linear(c), text(c) + ", beta up to 2");
  }
}

TEST(Linear, ThreadsAndStridesChangeNoBit) {
  for (const char* kind : recurrence_kinds()) {
    LinearCase c = linear_case(kind, {200, 6, 2, 24, 40});
    c.starts = {70, 90};
    c.fill(12);
    c.fill_states(13);
    const auto one = run_linear(c);
    expect_matches_reference(c, one, text(c));
    for (const int threads : {2, 3, 7}) {
      EXPECT_TRUE(run_linear(c, {.threads = threads}) == one) << text(c) << ", " << threads;
    }
    EXPECT_TRUE(run_linear(c, {.threads = 2, .strided = true}) == one) << text(c) << ", strided";
  }
}

TEST(Linear, WhatIsNotAskedForChangesNoBit) {
  for (const char* kind : recurrence_kinds()) {
    for (const bool states : {false, true}) {
      LinearCase c = linear_case(kind, {150, 4, 2, 24, 40});
      c.fill(12);
      if (states) c.fill_states(13);
      test::LinearResult all = run_linear(c);
      all.state_out.clear();
      all.dstate_in.clear();
      if (c.recurrence.decay == Decay::head) all.dlog_decay.clear();
      EXPECT_TRUE(run_linear(c, {.extras = false}) == all) << text(c) << ", " << states;
    }
  }
}

TEST(Linear, HeadsAreAlone) {
  for (const char* kind : recurrence_kinds()) {
    LinearCase c = linear_case(kind, {130, 6, 3, 24, 40});
    c.fill(12);
    c.fill_states(13);
    const auto all = run_linear(c);
    const auto part = run_linear(c.heads(1, 2));
    for (std::int64_t row = 0; row < c.shape.rows; ++row) {
      for (std::int64_t e = 0; e < 2 * 40; ++e) {
        const auto at = static_cast<std::size_t>(row * 240 + 80 + e),
                   at_part = static_cast<std::size_t>(row * 80 + e);
        ASSERT_EQ(all.out[at], part.out[at_part]) << text(c);
        ASSERT_EQ(all.dv[at], part.dv[at_part]) << text(c);
      }
      for (std::int64_t d = 0; d < 24; ++d) {
        const auto at = static_cast<std::size_t>(row * 72 + 24 + d),
                   at_part = static_cast<std::size_t>(row * 24 + d);
        ASSERT_EQ(all.dq[at], part.dq[at_part]) << text(c);
        ASSERT_EQ(all.dk[at], part.dk[at_part]) << text(c);
      }
    }
  }
}

TEST(Linear, LongRunsMakeTheirStatesAgain) {
  // More chunks than are kept at once: groups, the last one short.
  for (const char* kind : {"scalar", "kda"}) {
    LinearCase c = linear_case(kind, {75 * 64 + 5, 1, 1, 8, 8});
    c.fill(12, Gates::bounded);
    c.fill_states(13);
    expect_matches_reference(c, run_linear(c), text(c));
  }
}

}  // namespace
}  // namespace longhaul::attention
