// Calls run in phases, and calls of several batches may take turns phase by phase: so all ranks
// must enqueue what they exchange in the same phases, and what waits for the last exchange must
// come last.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "parallel/schemes/scheme.h"
#include "tests/support/scheme_cases.h"

namespace longhaul::parallel {
namespace {

using test::show;

/// Phases of the messages from a rank to another over a channel, in order.
using Phases = std::map<std::tuple<int, int, int>, std::vector<int>>;

TEST(Phases, BothEndsOfAMessageAreOfOnePhase) {
  std::int64_t messages = 0;
  for (const int ranks : {2, 3, 4, 5, 8}) {
    for (const Expression& scheme : test::all_schemes(ranks, 2 * ranks, ranks)) {
      for (const auto& [mask_name, mask] : test::assorted_masks(37)) {
        for (const Layout& layout : test::all_layouts(mask, 1, ranks)) {
          if (refuse({scheme, ranks, 2 * ranks, ranks, layout.kind(), mask.is_causal(),
                      Family::softmax, sees_whole_past(mask)}))
            continue;
          for (const Direction direction : {Direction::forward, Direction::backward}) {
            const SchemeInputs inputs{
                mask,      layout, {2 * ranks, ranks, 8, 8, runtime::DType::float32},
                direction, {},     scheme};
            Phases sent, received;
            for (const Program& program : build_schedule(inputs).programs) {
              for (const Step& step : program.steps) {
                const auto* transfer = std::get_if<Transfer>(&step.operation);
                if (transfer == nullptr) continue;
                for (const Message& message : transfer->sends)
                  sent[{program.rank, message.peer, step.stream}].push_back(step.phase);
                for (const Message& message : transfer->receives)
                  received[{message.peer, program.rank, step.stream}].push_back(step.phase);
                messages += static_cast<std::int64_t>(transfer->sends.size());
              }
            }
            ASSERT_EQ(sent, received)
                << show(scheme) << " over " << name(layout.kind()) << " P=" << ranks << " "
                << mask_name << " " << name(direction);
          }
        }
      }
    }
  }
  EXPECT_GT(messages, 100'000);
}

TEST(Phases, WhatWaitsForTheLastExchangeIsTheLastPhase) {
  // Of a program that ends in sums of what arrived: they wait, and no attention behind them does.
  const attention::Mask mask = attention::Mask::causal(40);
  const Layout layout(LayoutKind::contiguous, 40, 1, 4);
  for (const char* scheme : {"ring", "group_cast", "all_gather", "balanced_ring"}) {
    SchemeInputs inputs{mask, layout, {4, 4, 8, 8, runtime::DType::float32}, Direction::backward};
    inputs.scheme = parse_scheme(scheme);
    int last_phase_sums = 0;
    for (const Program& program : build_schedule(inputs).programs) {
      std::size_t last_attention = 0;
      for (std::size_t i = 0; i < program.steps.size(); ++i) {
        if (std::holds_alternative<AttendBackward>(program.steps[i].operation)) last_attention = i;
      }
      for (std::size_t i = 0; i < program.steps.size(); ++i) {
        const Step& step = program.steps[i];
        if (step.phase < 2) continue;
        EXPECT_GT(i, last_attention);
        EXPECT_EQ(step.stream, kCompute) << "transfers begin before";
        ++last_phase_sums;
        for (const Step& other : program.steps) {
          EXPECT_TRUE(other.phase == 2 || std::ranges::count(other.waits, static_cast<int>(i)) == 0)
              << "nothing earlier waits for it";
        }
      }
    }
    EXPECT_GT(last_phase_sums, 0) << scheme;
  }
}

}  // namespace
}  // namespace longhaul::parallel
