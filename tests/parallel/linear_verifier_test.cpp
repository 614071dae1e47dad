// The verifier accepts every linear scheme, and rejects broken ones for the right reason.
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "attention/linear.h"
#include "parallel/verifier/verifier.h"
#include "tests/support/expect_error.h"
#include "tests/support/linear_cases.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using test::expect_error;
using test::linear_shapes;
using test::NamedMask;

void expect_verified(const SchemeInputs& inputs, const std::string& what) {
  const Verdict verdict = verify(build_schedule(inputs), inputs.masks, inputs.layout);
  EXPECT_TRUE(verdict.ok()) << what << ": " << name(verdict.fault) << ": " << verdict.message;
}

/// Every scheme, both ways, with and without states from outside.
void expect_all_verified(const Shapes& shapes, const NamedMask& mask, const Layout& layout,
                         bool with_states) {
  for (const Expression& scheme : test::linear_schemes(shapes.kv_heads)) {
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      for (int states = 0; states < (with_states ? 5 : 1); ++states) {
        Shapes with = shapes;
        with.linear->states_given = states == 4;
        with.linear->initial_state = states % 2 != 0;
        with.linear->final_state = states == 2 || states == 3;
        with.linear->slopes_gradient =
            with.linear->recurrence.decay == attention::Decay::head && states != 1;
        expect_verified(
            {mask.mask, layout, with, direction, {}, scheme},
            runtime::concat(scheme.text(), " ", attention::kind_of(with.linear->recurrence), " ",
                            name(direction), " over ", name(layout.kind()), " P=", layout.ranks(),
                            ", ", mask.name, " of ", layout.batch(), "x", layout.seq_len(),
                            ", states ", states));
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(LinearVerifier, AcceptsEverySchemeEverywhere) {
  for (const std::int64_t n : {1, 2, 7, 29, 64}) {
    for (const std::int64_t batch : {1, 3}) {
      for (const NamedMask& mask : test::document_masks(n, batch)) {
        for (const int ranks : {1, 2, 3, 4, 5, 7, 8, 13}) {
          for (const Layout& layout : test::run_layouts(mask.mask, batch, ranks)) {
            expect_all_verified(linear_shapes("gated_delta"), mask, layout, ranks % 5 == 3);
            expect_all_verified(linear_shapes("decay"), mask, layout, ranks == 5);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(LinearVerifier, AcceptsEveryKind) {
  for (const char* kind : attention::recurrence_kinds()) {
    for (const NamedMask& mask : test::document_masks(31, 2)) {
      for (const Layout& layout : test::run_layouts(mask.mask, 2, 5))
        expect_all_verified(linear_shapes(kind, 6, 3, 4, 5), mask, layout, true);
    }
  }
}

TEST(LinearVerifier, AcceptsARecurrenceThatIsNotCausal) {
  Shapes shapes = linear_shapes("linear");
  shapes.linear->recurrence.causal = false;
  for (const int ranks : {1, 2, 3, 5, 8}) {
    for (const std::int64_t batch : {1, 3}) {
      const Mask mask = Mask::full(13).repeated(batch);
      for (const Layout& layout : test::run_layouts(mask, batch, ranks)) {
        for (const Direction direction : {Direction::forward, Direction::backward})
          expect_verified({mask, layout, shapes, direction, {}, "lasp2"}, name(layout.kind()));
      }
    }
  }
}

TEST(LinearVerifier, AcceptsHundredsOfRanks) {
  for (const int ranks : {32, 128, 512}) {
    const std::int64_t n = 2 * ranks + 5;
    for (const NamedMask& mask :
         {NamedMask{"causal", Mask::causal(n)}, test::document_masks(n, 1)[1]}) {
      for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag}) {
        const Layout layout(kind, n, 1, ranks);
        expect_all_verified(linear_shapes("gated_delta", 2, 1, 2, 2), mask, layout, false);
      }
    }
  }
}

TEST(LinearVerifier, RejectsAnotherMaskThanTheSchedules) {
  const Layout layout(LayoutKind::zigzag, 40, 1, 4);
  const Mask causal = Mask::causal(40),
             documents = Mask::documents(std::vector<std::int64_t>{0, 13, 40});
  for (const Expression& scheme : test::linear_schemes(2)) {
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      const auto of = [&](const Mask& mask) {
        return build_schedule({mask, layout, linear_shapes("kda"), direction, {}, scheme});
      };
      EXPECT_FALSE(verify(of(causal), documents, layout).ok()) << scheme.text();
      EXPECT_FALSE(verify(of(documents), causal, layout).ok()) << scheme.text();
    }
  }
}

TEST(LinearVerifier, RefusesMasksAndLayoutsThatNoStateFollows) {
  const Shapes shapes = linear_shapes("gated_delta");
  const Layout zigzag(LayoutKind::zigzag, 40, 1, 4), striped(LayoutKind::striped, 40, 1, 4);
  const auto build = [&](const Mask& mask, const Layout& layout, const Expression& scheme) {
    return [&, scheme] { build_schedule({mask, layout, shapes, Direction::forward, {}, scheme}); };
  };
  const Mask causal = Mask::causal(40), full = Mask::full(40), window = causal.within(-3, 0);
  expect_error(runtime::ExitCode::config, "a striped rank has none; use layout zigzag",
               build(causal, striped, "lasp2"));
  expect_error(runtime::ExitCode::config, "earlier tokens of a document",
               build(full, zigzag, "lasp2"));
  expect_error(runtime::ExitCode::config, "earlier tokens of a document",
               build(window, zigzag, "all_scan"));
  expect_error(runtime::ExitCode::config, "ring spreads softmax attention; use scheme lasp2",
               build(causal, zigzag, "ring"));
  expect_error(runtime::ExitCode::config, "groups=3 of 2 key heads; use scheme lasp(groups=2)",
               build(causal, zigzag, Expression("lasp").with("groups", std::int64_t{3})));
}

// ---- mutants

template <class Op>
std::vector<Op*> all(Schedule& schedule, int rank) {
  std::vector<Op*> found;
  for (Step& step : schedule.programs[static_cast<std::size_t>(rank)].steps) {
    if (Op* op = std::get_if<Op>(&step.operation)) found.push_back(op);
  }
  return found;
}

struct Mutant {
  const char* name;
  const char* scheme;
  Direction direction;
  Fault expected;
  std::function<void(Schedule&)> breaks;
};

const Mutant kMutants[] = {
    {"two runs swapped in a fold", "lasp2", Direction::forward, Fault::coverage,
     [](Schedule& s) {
       auto& links = all<Fold>(s, 4)[0]->links;
       std::swap(links[1].state, links[2].state);
     }},
    {"two transitions swapped in a fold", "lasp2", Direction::forward, Fault::coverage,
     [](Schedule& s) {
       auto& links = all<Fold>(s, 4)[0]->links;
       std::swap(links[1].transition, links[2].transition);
     }},
    {"a run dropped from a fold", "lasp2", Direction::forward, Fault::coverage,
     [](Schedule& s) {
       auto& links = all<Fold>(s, 4)[0]->links;
       links.erase(links.begin() + 1);
     }},
    {"a run folded twice", "lasp2", Direction::backward, Fault::coverage,
     [](Schedule& s) {
       auto& links = all<Fold>(s, 1)[0]->links;
       links.insert(links.begin() + 1, links[1]);
     }},
    {"a transition that is not transposed", "lasp2", Direction::backward, Fault::coverage,
     [](Schedule& s) { all<Fold>(s, 1)[0]->way.transposed = false; }},
    {"a transition that is transposed", "all_scan", Direction::forward, Fault::coverage,
     [](Schedule& s) { all<Fold>(s, 3)[0]->way.transposed = true; }},
    {"a reset that is ignored", "lasp2", Direction::forward, Fault::coverage,
     [](Schedule& s) { all<Sweep>(s, 1)[0]->run.starts.clear(); }},
    {"a reset a row late, in a run's map", "lasp2", Direction::forward, Fault::coverage,
     [](Schedule& s) { all<Summarize>(s, 1)[0]->run.starts[0] += 1; }},
    {"a reset a row early, in a gradient's map", "lasp2", Direction::backward, Fault::coverage,
     [](Schedule& s) { all<Summarize>(s, 1)[0]->run.starts[0] -= 1; }},
    {"a sweep without the state that enters it", "exscan", Direction::forward, Fault::coverage,
     [](Schedule& s) { all<Sweep>(s, 2)[0]->state_in.reset(); }},
    {"a backward sweep without the gradient that enters it", "lasp", Direction::backward,
     Fault::coverage,
     [](Schedule& s) { all<SweepBackward>(s, 2)[0]->gradients.dstate_out.reset(); }},
    {"blocks of value columns exchanged", "all_scan(blocks=2)", Direction::forward,
     Fault::misplaced,
     [](Schedule& s) {
       auto folds = all<Fold>(s, 2);
       std::swap(folds[0]->links[0].state, folds[1]->links[0].state);
     }},
    {"a state that is never sent", "lasp", Direction::forward, Fault::deadlock,
     [](Schedule& s) {
       for (Transfer* transfer : all<Transfer>(s, 2)) transfer->sends.clear();
     }},
    {"two runs composed in the wrong order", "exscan", Direction::forward, Fault::coverage,
     [](Schedule& s) {
       auto& links = all<Fold>(s, 3)[0]->links;
       std::swap(links[0], links[1]);
     }},
    {"a head group that is swept twice, another not at all", "lasp(replay=true)",
     Direction::forward, Fault::undefined,
     [](Schedule& s) {
       auto sweeps = all<Sweep>(s, 1);
       *sweeps[1] = *sweeps[0];
     }},
    {"gradients of other tokens than the values'", "lasp2", Direction::backward, Fault::malformed,
     [](Schedule& s) { all<SweepBackward>(s, 1)[0]->gradients.dv.row_end -= 1; }},
};

TEST(LinearVerifier, KillsMutantsForTheRightReason) {
  const Mask mask = Mask::documents(std::vector<std::int64_t>{0, 14, 50});
  const Layout layout(LayoutKind::contiguous, 50, 1, 5);  // a start in rank 1
  for (const Mutant& mutant : kMutants) {
    const Expression scheme = parse_scheme(mutant.scheme, {}, Family::linear);
    Schedule schedule =
        build_schedule({mask, layout, linear_shapes("gated_delta"), mutant.direction, {}, scheme});
    ASSERT_TRUE(verify(schedule, mask, layout).ok()) << mutant.name;
    mutant.breaks(schedule);
    const Verdict verdict = verify(schedule, mask, layout);
    EXPECT_EQ(verdict.fault, mutant.expected)
        << mutant.name << ": " << name(verdict.fault) << ": " << verdict.message;
  }
}

}  // namespace
}  // namespace longhaul::parallel
