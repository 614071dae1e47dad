// Programs of tasks that are not what was planned die in the verifier.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "parallel/schemes/scheme.h"
#include "parallel/verifier/verifier.h"
#include "tests/support/schedule_steps.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::as;
using test::steps_of;

/// Two homes and a server that does all, so that every task travels; documents across both homes.
SchemeInputs served(const attention::HeadMasks& masks, const Layout& layout, Direction direction,
                    const char* scheme) {
  SchemeInputs inputs{masks,     layout, {4, 2, 8, 8, runtime::DType::float32},
                      direction, {},     parse_scheme(scheme)};
  inputs.servers = {ServerMode::dedicated, 1};
  return inputs;
}

TEST(Mutants, TasksThatAreNotWhatWasPlanned) {
  const attention::HeadMasks masks = Mask::documents(std::vector<std::int64_t>{0, 9, 31, 40});
  const Layout layout = Layout::make(LayoutKind::packed, masks, 1, 2).with_empty_ranks(1);
  constexpr int kServer = 2;
  const auto expect = [&](Direction direction, std::initializer_list<Fault> faults,
                          const char* what, const std::function<void(Schedule&)>& breaks) {
    Schedule schedule = build_schedule(served(masks, layout, direction, "disaggregated"));
    ASSERT_TRUE(verify(schedule, masks, layout).ok()) << what;
    breaks(schedule);
    const Verdict verdict = verify(schedule, masks, layout);
    EXPECT_TRUE(std::ranges::count(faults, verdict.fault) == 1)
        << what << ": " << name(verdict.fault) << " " << verdict.message;
  };
  const auto tasks = [](Schedule& s) -> std::vector<TaskViews>& {
    return as<AttendTasks>(steps_of<AttendTasks>(s, kServer).at(0)).tasks;
  };
  const auto gradients = [](Schedule& s) -> std::vector<TaskGradientViews>& {
    return as<AttendTasksBackward>(steps_of<AttendTasksBackward>(s, kServer).at(0)).tasks;
  };
  using enum Fault;
  expect(Direction::forward, {coverage}, "a key too few",
         [&](Schedule& s) { tasks(s)[0].band.k_begin += 1; });
  expect(Direction::forward, {coverage}, "a diagonal that is one off",
         [&](Schedule& s) { tasks(s)[1].band.hi -= 1; });
  expect(Direction::forward, {undefined}, "a task that nobody does",
         [&](Schedule& s) { tasks(s).pop_back(); });
  expect(Direction::forward, {malformed}, "two tasks that write the same rows",
         [&](Schedule& s) { tasks(s)[1].partial = tasks(s)[0].partial; });
  expect(Direction::forward, {malformed}, "tasks of this rank beside those of external servers",
         [&](Schedule& s) { tasks(s)[1].server = 0; });
  expect(Direction::forward, {misplaced, coverage}, "the keys of another document",
         [&](Schedule& s) {
           TaskViews& task = tasks(s)[0];
           task.kv.row_begin += 9, task.kv.row_end += 9;
         });
  expect(Direction::forward, {malformed}, "two results to the same rows", [&](Schedule& s) {
    Transfer& back = as<Transfer>(steps_of<Transfer>(s, 0).back());
    View& view = back.receives.at(0).views.at(0);
    view.row_begin += 1, view.row_end += 1;
  });
  expect(Direction::backward, {coverage}, "a gradient of a key too few",
         [&](Schedule& s) { gradients(s)[0].band.k_begin += 1; });
  expect(Direction::backward, {malformed}, "two tasks' gradients of keys in the same rows",
         [&](Schedule& s) { gradients(s)[1].dkv.row_begin -= 1; });
  expect(Direction::backward, {coverage}, "a term of a sum that is left out", [&](Schedule& s) {
    for (const int rank : {0, 1}) {
      for (Step* step : steps_of<Accumulate>(s, rank)) {
        as<Accumulate>(step).src.clear();
        as<Accumulate>(step).dst.clear();
      }
    }
  });
}

TEST(Mutants, WhatIsKeptForBackwardIsWhatItTakes) {
  const attention::HeadMasks masks = Mask::documents(std::vector<std::int64_t>{0, 9, 31, 40});
  const Layout layout = Layout::make(LayoutKind::packed, masks, 1, 2).with_empty_ranks(1);
  const auto schedule = [&](Direction direction) {
    return build_schedule(served(masks, layout, direction, "disaggregated(resend=false)"));
  };
  const Schedule forward = schedule(Direction::forward), backward = schedule(Direction::backward);
  ASSERT_TRUE(verify(forward, masks, layout).ok());
  ASSERT_TRUE(verify(backward, masks, layout).ok());
  ASSERT_TRUE(verify_saved(forward, backward).ok());
  const auto saved = [](Schedule& s) -> Slot& {
    return *std::ranges::find(s.programs[2].slots, Role::saved, &Slot::role);
  };
  Schedule other = backward;
  ++saved(other).tokens.at(0).first;
  EXPECT_EQ(verify_saved(forward, other).fault, Fault::malformed) << "other tokens";
  EXPECT_EQ(verify(other, masks, layout).fault, Fault::misplaced) << "other tokens";
  other = forward;
  ++saved(other).tokens.at(0).first;
  EXPECT_EQ(verify(other, masks, layout).fault, Fault::misplaced)
      << "declares what it does not keep";
  other = forward;
  saved(other).role = Role::scratch;
  EXPECT_EQ(verify_saved(other, backward).fault, Fault::malformed) << "keeps nothing";
  other = backward;
  for (Step& step : other.programs[2].steps) {
    if (auto* transfer = std::get_if<Transfer>(&step.operation)) {
      for (Message& message : transfer->receives) {
        const int slot = static_cast<int>(&saved(other) - other.programs[2].slots.data());
        message.views.at(0) = {slot, 0, message.views[0].rows(), 0, 4};
      }
      break;
    }
  }
  EXPECT_EQ(verify(other, masks, layout).fault, Fault::malformed) << "writes what it is given";
}

}  // namespace
}  // namespace longhaul::parallel
