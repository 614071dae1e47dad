// The kernels of linear attention against the token recurrence in double.
#include "attention/linear.h"

#include <gtest/gtest.h>

#include "tests/support/linear_case.h"

namespace longhaul::attention {
namespace {

using runtime::DType;
using test::expect_matches_reference;
using test::Gates;
using test::linear_case;
using test::LinearCase;
using test::run_linear;

std::string text(const LinearCase& c) {
  return runtime::concat(kind_of(c.recurrence), " ", c.shape.rows, "x", c.shape.heads, "/",
                         c.shape.key_heads, " d=", c.shape.dim, " e=", c.shape.value_dim);
}

TEST(Linear, EveryKindMatchesTheTokenRecurrence) {
  for (const char* kind : recurrence_kinds()) {
    for (const std::int64_t rows : {1, 7, 16, 63, 64, 65, 127, 257}) {
      LinearCase c = linear_case(kind, {rows, 4, 2, 16, 24});
      c.fill(static_cast<std::uint32_t>(rows));
      expect_matches_reference(c, run_linear(c), text(c));
      c.fill_states(3);
      expect_matches_reference(c, run_linear(c), text(c) + " with states");
    }
  }
}

TEST(Linear, GatesFromSlowToMinus104) {
  for (const char* kind : {"decay", "scalar", "vector", "gated_delta", "kda"}) {
    for (const Gates gates : test::kAllGates) {
      LinearCase c = linear_case(kind, {257, 3, 1, 32, 16});
      c.fill(5, gates);
      c.fill_states(6);
      expect_matches_reference(c, run_linear(c), text(c) + ", " + name(gates));
    }
  }
  for (const char* kind : {"delta", "gated_delta", "kda"}) {
    LinearCase c = linear_case(kind, {257, 2, 2, 32, 16});
    c.fill(5, Gates::slow, 2);
    expect_matches_reference(c, run_linear(c), text(c) + ", beta up to 2");
  }
}

TEST(Linear, ConstantSlopesOverManyChunks) {
  // The factor of a chunk under this slope rounds by 2.4e-8 in float32, every time alike.
  for (const char* kind : {"decay", "scalar", "vector", "gated_delta"}) {
    LinearCase c = linear_case(kind, {32768, 1, 1, 8, 8});
    c.fill(5);
    for (float& a : c.log_decay) a = -1.5e-5f;
    for (float& b : c.beta) b *= 0.001f;
    expect_matches_reference(c, run_linear(c), text(c) + ", a small constant slope");
  }
}

TEST(Linear, AnySizes) {
  for (const char* kind : recurrence_kinds()) {
    for (const std::int64_t dim : {1, 7, 16, 64, 128, 192}) {
      for (const std::int64_t value_dim : {1, 7, 16, 64, 128, 192}) {
        if (dim >= 64 && value_dim >= 64 && dim + value_dim != 320) continue;
        LinearCase c = linear_case(kind, {71, 2, 1, dim, value_dim});
        c.fill(9);
        c.fill_states(10);
        // A key of one dim and norm 1 erases the whole state, and of its gradient nothing is left
        // but what the terms round.
        for (float& x : c.k) x *= dim == 1 ? 0.5f : 1;
        expect_matches_reference(c, run_linear(c), text(c));
      }
    }
  }
}

TEST(Linear, NothingAtAll) {
  for (const char* kind : recurrence_kinds()) {
    for (const LinearShape& shape : {LinearShape{0, 2, 1, 8, 5}, LinearShape{5, 0, 0, 8, 5},
                                     LinearShape{5, 2, 1, 0, 5}, LinearShape{5, 2, 1, 8, 0}}) {
      LinearCase c = linear_case(kind, shape);
      c.fill(2);
      c.fill_states(2);
      expect_matches_reference(c, run_linear(c), text(c));
    }
  }
}

TEST(Linear, Bfloat16Inputs) {
  for (const char* kind : recurrence_kinds()) {
    LinearCase c = linear_case(kind, {131, 4, 2, 40, 24, DType::bfloat16});
    c.fill(4);
    c.fill_states(5);
    expect_matches_reference(c, run_linear(c, {.strided = true}), text(c) + " in bfloat16");
  }
}

TEST(Linear, TheWholeSequence) {
  for (const std::int64_t rows : {1, 64, 257}) {
    LinearCase c = linear_case("linear", {rows, 4, 2, 16, 24});
    c.recurrence.causal = false;
    c.fill(7);
    expect_matches_reference(c, run_linear(c), text(c) + ", full");
    c.fill_states(8);
    expect_matches_reference(c, run_linear(c), text(c) + ", full with states");
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
