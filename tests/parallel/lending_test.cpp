// Rings whose blocks are lent: every program is proven, its mutants die, and answers are those of
// copies, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "parallel/verifier/verifier.h"
#include "runtime/error.h"
#include "tests/support/schedule_steps.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using runtime::concat;
using test::as;
using test::Problem;
using test::show;
using test::SpreadJob;
using test::SpreadOptions;
using test::steps_of;

constexpr Direction kDirections[] = {Direction::forward, Direction::backward};

/// Those that are rings of one level, or have one inside.
std::vector<Expression> rings(int ranks, int heads, int kv_heads) {
  std::vector<Expression> all;
  for (const Expression& scheme : test::all_schemes(ranks, heads, kv_heads)) {
    if (scheme.name == "ring" || scheme.name == "burst" || scheme.name == "usp" ||
        scheme.name == "ring_self_attention" || scheme.name == "double_ring")
      all.push_back(scheme);
  }
  return all;
}

Schedule lent_schedule(const attention::HeadMasks& masks, const Layout& layout,
                       const Expression& scheme, Direction direction, bool lends = true) {
  SchemeInputs inputs{masks, layout, {8, 4, 8, 8, runtime::DType::float32}, direction};
  inputs.scheme = scheme;
  inputs.lends = lends;
  return build_schedule(inputs);
}

std::int64_t loans_of(const Schedule& schedule) {
  std::int64_t loans = 0;
  for (const Program& program : schedule.programs) {
    for (const Step& step : program.steps) {
      if (const auto* transfer = std::get_if<Transfer>(&step.operation))
        loans += std::ranges::count(transfer->sends, Passing::lend, &Message::passing);
    }
  }
  return loans;
}

TEST(Lending, EveryRingIsProven) {
  std::int64_t loans = 0;
  for (const int ranks : {1, 2, 3, 4, 7}) {
    for (const Expression& scheme : rings(ranks, 8, 4)) {
      for (const auto& [mask_name, mask] : test::assorted_masks(ranks == 7 ? 31 : 40)) {
        for (const Layout& layout : test::all_layouts(mask, 1, ranks)) {
          for (const Direction direction : kDirections) {
            const Schedule schedule = lent_schedule(mask, layout, scheme, direction);
            const Verdict verdict = verify(schedule, mask, layout);
            ASSERT_EQ(verdict.fault, Fault::none)
                << show(scheme) << " over " << name(layout.kind()) << " P=" << ranks << " "
                << mask_name << " " << name(direction) << ": " << verdict.message;
            loans += loans_of(schedule);
          }
        }
      }
    }
  }
  EXPECT_GT(loans, 10'000);
}

TEST(Lending, TakesNoMemoryAndSendsNothingOfWhatItLends) {
  const Mask mask = Mask::causal(40);
  const Layout layout = Layout::make(LayoutKind::zigzag, mask, 1, 4);
  const Program lent = lent_schedule(mask, layout, {"ring"}, Direction::forward).programs[1],
                copied =
                    lent_schedule(mask, layout, {"ring"}, Direction::forward, false).programs[1];
  EXPECT_EQ(count(lent).sent_bytes, 0);
  EXPECT_EQ(count(lent).scratch_bytes, 0);
  EXPECT_GT(count(copied).sent_bytes, 0);
  EXPECT_GT(count(copied).scratch_bytes, 0);
  // Gradients still travel, and what they are made of does not.
  const Program back = lent_schedule(mask, layout, {"ring"}, Direction::backward).programs[1];
  EXPECT_EQ(count(back).sent_bytes, 3 * 10 * 4 * (8 + 8) * 4);  // hops, rows, heads, dims, bytes
}

TEST(Lending, AnswersAreThoseOfCopies) {
  for (const int ranks : {2, 3, 5}) {
    std::vector<std::unique_ptr<Problem>> problems;
    std::vector<SpreadJob> jobs;
    for (const auto& [name, mask] : test::assorted_masks(41)) {
      if (name == "full" || name == "prefix" || name == "blocks") continue;
      for (const bool bf16 : {false, true}) {
        if (bf16 && name != "causal") continue;
        problems.push_back(std::make_unique<Problem>(
            name, mask, test::ProblemSizes{.heads = 4, .kv_heads = 2, .bf16 = bf16}));
        for (const Expression& scheme : rings(ranks, 4, 2)) {
          for (const Layout& layout : test::all_layouts(mask, 1, ranks))
            jobs.push_back({problems.back().get(), layout, scheme});
        }
      }
    }
    SpreadOptions copies, loans;
    loans.lend = true;
    const auto want = run_jobs(jobs, ranks, copies), got = run_jobs(jobs, ranks, loans);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      ASSERT_EQ(got[i].digests(), want[i].digests()) << show(jobs[i]);
      expect_bytes_as_counted(jobs[i], got[i], loans);
    }
  }
}

TEST(Lending, LatencyAndRepeatsChangeNothing) {
  const Problem problem("causal", Mask::causal(61), test::ProblemSizes());
  const std::vector<SpreadJob> jobs(
      3, {&problem, Layout::make(LayoutKind::zigzag, problem.masks, 1, 4), {"ring"}});
  SpreadOptions loans;
  loans.lend = true;
  loans.repeats = 3;
  const auto want = run_jobs(jobs, 4, {});
  const auto got =
      run_jobs(jobs, 4, loans, {.latency_seconds = 1e-3, .jitter_seconds = 3e-3, .jitter_seed = 7});
  for (std::size_t i = 0; i < jobs.size(); ++i) EXPECT_EQ(got[i].digests(), want[i].digests());
}

/// A way to break a schedule of loans, and what the verifier must say of it.
struct Mutation {
  const char* name;
  Fault fault;
  std::function<void(Schedule&)> breaks;
};

bool has(const Transfer& transfer, Passing passing) {
  return std::ranges::count(transfer.sends, passing, &Message::passing) > 0;
}
std::vector<Step*> transfers(Schedule& s, int rank, Passing passing) {
  return steps_of<Transfer>(s, rank, [&](const Transfer& t) { return has(t, passing); });
}

const Mutation kMutations[] = {
    {"nothing is given back", Fault::hazard,
     [](Schedule& s) {
       for (int rank = 0; rank < 3; ++rank) {
         for (Step* step : transfers(s, rank, Passing::give_back)) as<Transfer>(step) = {};
       }
     }},
    {"a rank gives back before it has read", Fault::hazard,
     [](Schedule& s) {
       for (int rank = 0; rank < 3; ++rank) {  // of all waits, those for attention
         for (Step* step : transfers(s, rank, Passing::give_back)) {
           std::erase_if(step->waits, [&](int wait) {
             return s.programs[static_cast<std::size_t>(rank)]
                        .steps[static_cast<std::size_t>(wait)]
                        .stream == kCompute;
           });
         }
       }
     }},
    {"what is given back is read once more", Fault::hazard,
     [](Schedule& s) {
       Program& program = s.programs[0];
       const auto reads = [](const Step& step) {
         return std::holds_alternative<Attend>(step.operation);
       };
       const auto last = std::find_if(program.steps.rbegin(), program.steps.rend(), reads);
       Step again = *last;
       again.waits = {static_cast<int>(program.steps.size()) - 1};
       program.steps.push_back(again);
     }},
    {"one side lends what the other copies", Fault::mismatch,
     [](Schedule& s) {
       Program& program = s.programs[2];
       for (Slot& slot : program.slots) {
         if (slot.role == Role::borrowed) slot.role = Role::scratch;
       }
       for (Step& step : program.steps) {
         auto* transfer = std::get_if<Transfer>(&step.operation);
         if (transfer == nullptr) continue;
         std::erase_if(transfer->sends,
                       [](const Message& m) { return m.passing == Passing::give_back; });
         std::erase_if(transfer->receives,
                       [](const Message& m) { return m.passing == Passing::give_back; });
         for (auto* side : {&transfer->sends, &transfer->receives}) {
           for (Message& message : *side) message.passing = Passing::copy;
         }
       }
     }},
    {"a block is lent on under another name", Fault::mismatch,
     [](Schedule& s) {
       for (Step* step : transfers(s, 0, Passing::lend)) as<Transfer>(step).sends[0].tag += 1;
     }},
    {"a copy writes into a borrowed slot", Fault::malformed,
     [](Schedule& s) {
       for (Step* step : transfers(s, 0, Passing::lend)) {
         for (Message& message : as<Transfer>(step).receives) message.passing = Passing::copy;
       }
     }},
    {"a sum reads what is borrowed", Fault::malformed,
     [](Schedule& s) {
       Program& program = s.programs[0];
       for (Step& step : program.steps) {
         if (auto* attend = std::get_if<Attend>(&step.operation);
             attend != nullptr && program.slot(attend->kv).role == Role::borrowed) {
           step.operation = Copy{{attend->kv}, {attend->kv}};
           return;
         }
       }
     }},
    {"part of a block is lent", Fault::malformed,
     [](Schedule& s) {
       for (int rank = 0; rank < 3; ++rank) {
         for (Step* step : transfers(s, rank, Passing::lend)) {
           for (auto* side : {&as<Transfer>(step).sends, &as<Transfer>(step).receives}) {
             for (Message& message : *side) --message.views[0].row_end;
           }
         }
       }
     }},
    {"a loan goes back to another rank", Fault::hazard, [](Schedule& s) {
       for (Step* step : transfers(s, 0, Passing::give_back)) {
         for (Message& message : as<Transfer>(step).sends) message.peer = 1;
       }
     }}};

TEST(Lending, MutantsDie) {
  const Mask mask = Mask::full(30);
  const Layout layout(LayoutKind::contiguous, 30, 1, 3);
  for (const Mutation& mutation : kMutations) {
    Schedule schedule = lent_schedule(mask, layout, {"ring"}, Direction::forward);
    ASSERT_EQ(verify(schedule, mask, layout).fault, Fault::none);
    mutation.breaks(schedule);
    const Verdict verdict = verify(schedule, mask, layout);
    EXPECT_EQ(verdict.fault, mutation.fault) << mutation.name << ": " << verdict.message;
  }
}

TEST(Lending, WhatIsLentIsNotWrittenMeanwhile) {
  // A ring of ranks that have traded heads lends what those trades brought.
  const Mask mask = Mask::full(40);
  const Layout layout(LayoutKind::contiguous, 40, 1, 4);
  Schedule schedule = lent_schedule(mask, layout, parse_scheme("usp(heads=2)"), Direction::forward);
  ASSERT_EQ(verify(schedule, mask, layout).fault, Fault::none);
  const View lent = as<Transfer>(transfers(schedule, 1, Passing::lend)[0]).sends[0].views[0];
  const auto brings = [&](const Transfer& transfer) {
    return std::ranges::any_of(accesses(transfer), [&](const Access& access) {
      return access.write && access.view.slot == lent.slot;
    });
  };
  const Transfer again = as<Transfer>(steps_of<Transfer>(schedule, 1, brings)[0]);
  Step* late = steps_of<Attend>(
      schedule, 1, [](const Attend& attend) { return attend.mode == attention::Mode::add; })[0];
  *late = {again, 1, late->phase, {}};
  const Verdict verdict = verify(schedule, mask, layout);
  EXPECT_EQ(verdict.fault, Fault::hazard) << verdict.message;
  EXPECT_NE(verdict.message.find("while it is lent"), std::string::npos) << verdict.message;
}

}  // namespace
}  // namespace longhaul::parallel
