// What `auto` chooses of the schemes of recurrences, against bytes counted from their schedules.
#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/policy.h"
#include "tests/support/linear_cases.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::linear_shapes;

std::string chosen(const Shapes& shapes, LayoutKind layout, int ranks, std::int64_t rows) {
  return choose_linear_scheme("auto", shapes, layout, ranks, rows).scheme.text();
}

/// Most bytes that a rank receives of a scheme forward, over one long document.
std::int64_t received(const Expression& scheme, const Shapes& shapes, LayoutKind kind, int ranks) {
  const std::int64_t tokens = 16 * ranks;
  const Mask mask = Mask::causal(tokens);
  const Layout layout(kind, tokens, 1, ranks);
  std::vector<std::int64_t> bytes(static_cast<std::size_t>(ranks), 0);
  const Schedule schedule = build_schedule({mask, layout, shapes, Direction::forward, {}, scheme});
  for (const Program& program : schedule.programs) {
    for (const auto& [rank, sent] : count(program).sent_to)
      bytes[static_cast<std::size_t>(rank)] += sent;
  }
  return std::ranges::max(bytes);
}

std::int64_t own_bytes_a_row(const Shapes& s) {
  return (2 * s.kv_heads * s.dim + s.heads * s.value_dim) * size_bytes(s.activation);
}

TEST(LinearPolicy, GathersWhileThatIsLessThanItsOwnRows) {
  for (const char* kind : attention::recurrence_kinds()) {
    for (const LayoutKind layout : {LayoutKind::contiguous, LayoutKind::zigzag}) {
      for (const auto activation : {runtime::DType::float32, runtime::DType::bfloat16}) {
        for (const int ranks : {2, 3, 5, 8}) {
          Shapes shapes = linear_shapes(kind, 4, 1, 8, 6);
          shapes.activation = activation;
          const std::int64_t gathered = received("lasp2", shapes, layout, ranks),
                             row = own_bytes_a_row(shapes);
          const std::int64_t enough = (gathered + row - 1) / row;
          SCOPED_TRACE(runtime::concat(kind, " over ", name(layout), " on ", ranks));
          EXPECT_EQ(chosen(shapes, layout, ranks, enough), "lasp2");
          EXPECT_EQ(chosen(shapes, layout, ranks, enough - 1), "all_scan");
          EXPECT_LE(received("all_scan", shapes, layout, ranks), gathered);
        }
      }
    }
  }
}

TEST(LinearPolicy, DeltaRulesReplayWhileSweepsWaitLessThanSummariesCost) {
  for (const char* kind : {"delta", "gated_delta", "kda"}) {
    for (const int groups : {1, 2, 3, 8, 16}) {
      const Shapes shapes = linear_shapes(kind, 2 * groups, groups);
      for (int ranks = 2; ranks <= 12; ++ranks) {
        const double waits = static_cast<double>(ranks - 1) / groups;
        for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{1} << 30}) {
          const std::string scheme = chosen(shapes, LayoutKind::zigzag, ranks, rows);
          EXPECT_EQ(scheme == "lasp(replay=true)", waits <= 0.5)
              << kind << ", " << groups << " groups, " << ranks << " ranks: " << scheme;
        }
      }
    }
  }
  EXPECT_EQ(chosen(linear_shapes("vector", 16, 16), LayoutKind::zigzag, 2, 1 << 30), "lasp2");
}

TEST(LinearPolicy, WhatNeedsNoChoice) {
  Shapes shapes = linear_shapes("linear", 4, 4);
  EXPECT_EQ(chosen(shapes, LayoutKind::contiguous, 1, 1), "lasp2");
  shapes.linear->recurrence.causal = false;
  EXPECT_EQ(chosen(shapes, LayoutKind::contiguous, 8, 1), "lasp2");
  const LinearChoice asked = choose_linear_scheme("exscan", shapes, LayoutKind::contiguous, 8, 1);
  EXPECT_EQ(asked.scheme.text(), "exscan");
  EXPECT_EQ(asked.reason, "");
}

TEST(LinearPolicy, SaysWhy) {
  EXPECT_EQ(choose_linear_scheme("auto", linear_shapes("kda", 16, 16, 128, 128), LayoutKind::zigzag,
                                 8, 4096)
                .reason,
            "a delta rule's sweeps that pass the state on by 16 heads of q and k wait 7/16 of a "
            "sweep for each other; summaries would cost 1/2");
  EXPECT_EQ(choose_linear_scheme("auto", linear_shapes("linear", 2, 2, 8, 8),
                                 LayoutKind::contiguous, 3, 10)
                .reason,
            "a rank would gather up to 1,024 bytes of states, its own q, k and v are 1,920 bytes");
}

}  // namespace
}  // namespace longhaul::parallel
