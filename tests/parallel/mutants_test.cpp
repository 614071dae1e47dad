// Mutants of every scheme die: in the verifier, or where it cannot see, against the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <set>

#include "parallel/executor.h"
#include "parallel/verifier/verifier.h"
#include "runtime/error.h"
#include "tests/support/schedule_steps.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::HeadMasks;
using attention::Mask;
using runtime::Tensor;
using test::as;
using test::show;
using test::steps_of;

constexpr int kRanks = 4;

struct Subject {
  Expression options;
  HeadMasks masks;
  Layout layout;
  Schedule schedule(Direction direction) const {
    SchemeInputs inputs{masks, layout, {8, 4, 8, 8, runtime::DType::float32}, direction};
    inputs.scheme = options;
    return build_schedule(inputs);
  }
};

/// Every scheme over a causal mask, so that balanced_ring is among them.
std::vector<Subject> subjects() {
  std::vector<Subject> all;
  const Mask causal = Mask::causal(40);
  for (const Expression& options : test::all_schemes(kRanks, 8, 4))
    all.push_back({options, causal, Layout(LayoutKind::contiguous, 40, 1, kRanks)});
  return all;
}

/// A way to break any schedule; false where it has nothing to break.
struct Mutation {
  const char* name;
  std::function<bool(Schedule&)> breaks;
};

const Mutation kMutations[] = {
    {"dropped hop: a last send is lost",
     [](Schedule& s) {
       for (int rank = kRanks - 1; rank >= 0; --rank) {
         auto sends =
             steps_of<Transfer>(s, rank, [](const Transfer& t) { return !t.sends.empty(); });
         if (sends.empty()) continue;
         as<Transfer>(sends.back()).sends.pop_back();
         return true;
       }
       return false;
     }},
    {"dropped hop: the last transfer is lost on all ranks",
     [](Schedule& s) {
       bool dropped = false;
       for (int rank = 0; rank < kRanks; ++rank) {
         auto transfers = steps_of<Transfer>(s, rank);
         if (transfers.empty()) continue;
         as<Transfer>(transfers.back()) = Transfer{};
         dropped = true;
       }
       return dropped;
     }},
    {"wrong half: bands over the first half of the keys move to the second",
     [](Schedule& s) {
       for (int rank = 0; rank < kRanks; ++rank) {
         for (Step& step : s.programs[static_cast<std::size_t>(rank)].steps) {
           std::vector<Slice>* bands = nullptr;
           std::int64_t keys = 0;
           if (auto* a = std::get_if<Attend>(&step.operation)) {
             bands = &a->bands, keys = a->kv.rows();
           } else if (auto* b = std::get_if<AttendBackward>(&step.operation)) {
             bands = &b->bands, keys = b->kv.rows();
           }
           if (bands == nullptr || bands->empty() || keys < 2) continue;
           Slice& band = bands->front();
           const bool all =
               attention::area(band) == (band.q_end - band.q_begin) * (band.k_end - band.k_begin);
           if (!all || band.k_begin != 0 || band.k_end < keys) continue;
           band.k_begin = keys / 2;
           return true;
         }
       }
       return false;
     }},
    {"stale key/value: a later attend reads the view of the one before",
     [](Schedule& s) {
       for (int rank = kRanks - 1; rank >= 0; --rank) {
         auto attends = steps_of<Attend>(s, rank, [](const Attend& a) { return !a.bands.empty(); });
         for (std::size_t i = attends.size(); i-- > 1;) {
           Attend &before = as<Attend>(attends[i - 1]), &after = as<Attend>(attends[i]);
           if (before.kv == after.kv && before.v == after.v) continue;
           if (before.kv.rows() != after.kv.rows() || before.kv.heads() != after.kv.heads())
             continue;
           after.kv = before.kv;
           after.v = before.v;
           return true;
         }
       }
       return false;
     }},
    {"stale key/value in backward",
     [](Schedule& s) {
       for (int rank = kRanks - 1; rank >= 0; --rank) {
         auto attends = steps_of<AttendBackward>(
             s, rank, [](const AttendBackward& a) { return !a.bands.empty(); });
         for (std::size_t i = attends.size(); i-- > 1;) {
           auto &before = as<AttendBackward>(attends[i - 1]),
                &after = as<AttendBackward>(attends[i]);
           const auto same_size = [](const View& a, const View& b) {
             return a.rows() == b.rows() && a.heads() == b.heads();
           };
           if (!(before.kv == after.kv) && same_size(before.kv, after.kv)) {
             after.kv = before.kv;
             after.v = before.v;
             return true;
           }
           if (!(before.q_bundle == after.q_bundle) && same_size(before.q_bundle, after.q_bundle)) {
             after.q_bundle = before.q_bundle;
             return true;
           }
         }
       }
       return false;
     }},
    {"double-added accumulator",
     [](Schedule& s) {
       for (int rank = 0; rank < kRanks; ++rank) {
         auto& steps = s.programs[static_cast<std::size_t>(rank)].steps;
         for (std::size_t i = steps.size(); i-- > 0;) {
           if (!std::holds_alternative<Accumulate>(steps[i].operation)) continue;
           // Once more, right behind: later steps move on by one, and wait for the second.
           const int at = static_cast<int>(i);
           for (Step& step : steps) {
             for (int& wait : step.waits) wait += wait >= at ? 1 : 0;
           }
           steps.insert(steps.begin() + at + 1, {steps[i].operation, kCompute, steps[i].phase, {}});
           return true;
         }
       }
       return false;
     }},
    {"missing sum: an accumulation is skipped",
     [](Schedule& s) {
       for (int rank = 0; rank < kRanks; ++rank) {
         auto sums = steps_of<Accumulate>(s, rank);
         if (sums.empty()) continue;
         Accumulate& sum = as<Accumulate>(sums.back());
         sum.src.clear();
         sum.dst.clear();
         return true;
       }
       return false;
     }},
    {"an attend that overwrites what it should add to",
     [](Schedule& s) {
       for (int rank = kRanks - 1; rank >= 0; --rank) {
         auto attends = steps_of<Attend>(
             s, rank, [](const Attend& a) { return a.mode == Mode::add && !a.bands.empty(); });
         if (attends.empty()) continue;
         as<Attend>(attends.back()).mode = Mode::write;
         return true;
       }
       return false;
     }},
    {"a message to the wrong place: two views of a receive swap",
     [](Schedule& s) {
       for (const int rank : {1, 2, 3, 0}) {
         for (Step* step : steps_of<Transfer>(s, rank)) {
           std::vector<View*> views;
           for (Message& m : as<Transfer>(step).receives) {
             for (View& view : m.views) views.push_back(&view);
           }
           // Keys that queries see all of, and terms of one sum, are sets.
           if (s.scheme.starts_with("disaggregated")) continue;
           for (std::size_t i = 1; i < views.size(); ++i) {
             const View &a = *views[i - 1], &b = *views[i];
             const auto kind = [&](const View& v) {
               return s.programs[static_cast<std::size_t>(rank)].slot(v).record.kind;
             };
             if (kind(a) != kind(b) || a.rows() != b.rows() || a.heads() != b.heads()) continue;
             std::swap(*views[i - 1], *views[i]);
             return true;
           }
         }
       }
       return false;
     }},
    {"a step that does not wait for its message",
     [](Schedule& s) {
       for (int rank = 0; rank < kRanks; ++rank) {
         for (Step& step : s.programs[static_cast<std::size_t>(rank)].steps) {
           if (step.stream != kCompute || step.waits.empty()) continue;
           step.waits.clear();
           return true;
         }
       }
       return false;
     }},
};

TEST(Mutants, OfEverySchemeDieInTheVerifier) {
  std::map<std::string, std::set<std::string>> killed;  // scheme -> mutations that applied to it
  for (const Subject& subject : subjects()) {
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      const Schedule sound = subject.schedule(direction);
      ASSERT_TRUE(verify(sound, subject.masks, subject.layout).ok()) << show(subject.options);
      for (const Mutation& mutation : kMutations) {
        Schedule mutant = sound;
        if (!mutation.breaks(mutant)) continue;
        const Verdict verdict = verify(mutant, subject.masks, subject.layout);
        EXPECT_FALSE(verdict.ok()) << show(subject.options) << " " << name(direction)
                                   << " survives '" << mutation.name << "'";
        killed[subject.options.name].insert(mutation.name);
      }
    }
  }
  std::set<std::string> applied;
  for (const std::string& name : scheme_names()) {
    std::printf("%-20s %zu of %zu mutations apply and die\n", name.c_str(), killed[name].size(),
                std::size(kMutations));
    EXPECT_GE(killed[name].size(), 4u) << name;
    applied.insert(killed[name].begin(), killed[name].end());
  }
  EXPECT_EQ(applied.size(), std::size(kMutations)) << "a mutation applies to no scheme";
}

// ---- of one scheme
// ------------------------------------------------------------------------------------------------

void expect_dies(const Subject& subject, Direction direction, Fault fault, const char* what,
                 const std::function<void(Schedule&)>& breaks) {
  Schedule schedule = subject.schedule(direction);
  breaks(schedule);
  const Verdict verdict = verify(schedule, subject.masks, subject.layout);
  EXPECT_STREQ(name(verdict.fault), name(fault)) << what << ": " << verdict.message;
}

TEST(Mutants, RingSelfAttentionThatPairsKeysWithOtherValues) {
  const Subject subject{Expression("ring_self_attention"), Mask::full(40),
                        Layout(LayoutKind::contiguous, 40, 1, kRanks)};
  expect_dies(subject, Direction::forward, Fault::misplaced, "keys of another block",
              [](Schedule& s) {
                auto attends = steps_of<Attend>(s, 1);
                std::swap(as<Attend>(attends[1]).kv, as<Attend>(attends[2]).kv);
              });
  expect_dies(subject, Direction::backward, Fault::misplaced, "values of another block",
              [](Schedule& s) {
                auto attends = steps_of<AttendBackward>(s, 1);
                std::swap(as<AttendBackward>(attends[1]).kv, as<AttendBackward>(attends[2]).kv);
              });
}

TEST(Mutants, UlyssesThatForgetsAReplica) {
  Subject subject{Expression("ulysses"), Mask::full(40), Layout(LayoutKind::zigzag, 40, 1, kRanks)};
  const SchemeInputs inputs{subject.masks,
                            subject.layout,
                            {8, 2, 8, 8, runtime::DType::float32},
                            Direction::backward,
                            {},
                            subject.options};
  Schedule schedule = build_schedule(inputs);
  ASSERT_TRUE(verify(schedule, subject.masks, subject.layout).ok());
  auto sums = steps_of<Accumulate>(schedule, 2);
  ASSERT_EQ(sums.size(), 2u);  // each of two key/value heads was at two ranks
  Accumulate& sum = as<Accumulate>(sums[1]);
  sum.src.clear();
  sum.dst.clear();
  EXPECT_EQ(verify(schedule, subject.masks, subject.layout).fault, Fault::coverage);
}

TEST(Mutants, UlyssesThatSwapsHeads) {
  const Subject subject{Expression("ulysses"), Mask::full(40),
                        Layout(LayoutKind::zigzag, 40, 1, kRanks)};
  expect_dies(subject, Direction::forward, Fault::misplaced, "results come home to other heads",
              [](Schedule& s) {
                Transfer& home = as<Transfer>(steps_of<Transfer>(s, 0).back());
                std::swap(home.receives[1].views[0], home.receives[2].views[0]);
              });
}

/// A schedule whose ranks hold equally many rows, so that its collectives are marked.
Schedule marked(const std::string& name, Direction direction, const Layout& layout) {
  const SchemeInputs inputs{Mask::full(40), layout, {8, 4, 8, 8, runtime::DType::float32},
                            direction,      {},     Expression(name)};
  return build_schedule(inputs);
}

TEST(Mutants, TransfersMarkedAsCollectivesThatAreNone) {
  const Layout layout(LayoutKind::zigzag, 40, 1, kRanks);
  const auto transfer = [](Schedule& s, int rank, std::size_t n) -> Transfer& {
    return as<Transfer>(steps_of<Transfer>(s, rank).at(n));
  };
  const auto verdict = [&](const Schedule& s) { return verify(s, Mask::full(40), layout); };
  struct Case {
    const char* what;
    const char* scheme;
    TransferKind kind;
    Fault fault;
    std::function<void(Schedule&)> breaks;
  };
  const Case cases[] = {
      {"one rank knows nothing of the mark", "all_gather", TransferKind::all_gather,
       Fault::mismatch, [&](Schedule& s) { transfer(s, 2, 0).kind = TransferKind::none; }},
      {"one rank takes it for another collective", "ulysses", TransferKind::all_to_all,
       Fault::malformed, [&](Schedule& s) { transfer(s, 2, 0).kind = TransferKind::all_gather; }},
      {"a member gets less than the others", "all_gather", TransferKind::all_gather,
       Fault::malformed, [&](Schedule& s) { transfer(s, 0, 0).sends[1].views[0].row_end -= 1; }},
      {"a member is left out by one", "all_gather", TransferKind::all_gather, Fault::malformed,
       [&](Schedule& s) { transfer(s, 0, 0).sends.pop_back(); }},
      {"two members leave each other out", "all_gather", TransferKind::all_gather, Fault::mismatch,
       [&](Schedule& s) {
         for (const auto& [rank, other] : {std::pair{0, 1}, {1, 0}}) {
           Transfer& t = transfer(s, rank, 0);
           const auto is_other = [&](const Message& m) { return m.peer == other; };
           std::erase_if(t.sends, is_other);
           std::erase_if(t.receives, is_other);
         }
       }},
      {"another view to one member", "all_gather", TransferKind::all_gather, Fault::malformed,
       [&](Schedule& s) {
         View& view = transfer(s, 1, 0).sends[2].views[0];
         ++view.head_begin, ++view.head_end;
       }},
  };
  for (const Case& c : cases) {
    Schedule s = marked(c.scheme, Direction::forward, layout);
    ASSERT_TRUE(verdict(s).ok()) << verdict(s).message;
    ASSERT_EQ(transfer(s, 0, 0).kind, c.kind);
    c.breaks(s);
    const Verdict found = verdict(s);
    EXPECT_STREQ(name(found.fault), name(c.fault)) << c.what << ": " << found.message;
  }
}

TEST(Mutants, CollectivesOfUnequalCountsAreNotMarked) {
  const Layout ragged(LayoutKind::zigzag, 41, 1, kRanks), even(LayoutKind::zigzag, 40, 1, kRanks);
  for (const char* scheme_name : {"all_gather", "ulysses", "usp"}) {
    for (const Direction direction : {Direction::forward, Direction::backward}) {
      for (const auto& [layout, n] : {std::pair{&ragged, 41}, {&even, 40}}) {
        SchemeInputs inputs{
            Mask::full(n), *layout, {8, 4, 8, 8, runtime::DType::float32}, direction};
        inputs.scheme = scheme_name;
        std::size_t some = 0;
        for (const Program& program : build_schedule(inputs).programs) {
          for (const Step& step : program.steps) {
            const auto* transfer = std::get_if<Transfer>(&step.operation);
            some += transfer && transfer->kind != TransferKind::none ? 1 : 0;
          }
        }
        if (n == 40) {
          EXPECT_GT(some, 0u) << scheme_name << " " << name(direction);
        } else if (std::string(scheme_name) != "usp") {  // two of its ranks may be even
          EXPECT_EQ(some, 0u) << scheme_name << " " << name(direction);
        }
      }
    }
  }
}

TEST(Mutants, GroupCastOfScatteredRows) {
  // Documents over striped ranks: what a rank needs of another, and gives back, is many intervals.
  std::vector<std::int64_t> offsets{0};
  while (offsets.back() < 60) offsets.push_back(std::min<std::int64_t>(60, offsets.back() + 5));
  const Subject subject{Expression("group_cast"), Mask::documents(offsets),
                        Layout(LayoutKind::striped, 60, 1, kRanks)};
  const auto scattered = [](Schedule& s, int rank) -> Accumulate& {
    return as<Accumulate>(
        steps_of<Accumulate>(s, rank, [](const Accumulate& a) { return a.dst.size() > 3; }).at(0));
  };
  const Direction backward = Direction::backward;
  expect_dies(subject, backward, Fault::misplaced, "two intervals of a sum swap", [&](Schedule& s) {
    Accumulate& sum = scattered(s, 1);
    const auto equal = [&](const View& v) { return v.rows() == sum.dst[0].rows(); };
    const auto other = std::find_if(sum.dst.begin() + 1, sum.dst.end(), equal);
    ASSERT_NE(other, sum.dst.end());
    std::swap(sum.dst[0], *other);
  });
  expect_dies(subject, backward, Fault::malformed, "an interval is summed into twice",
              [&](Schedule& s) {
                Accumulate& sum = scattered(s, 1);
                sum.src.push_back(sum.src[0]);
                sum.dst.push_back(sum.dst[0]);
              });
  expect_dies(subject, backward, Fault::malformed, "a source without its destination",
              [&](Schedule& s) { scattered(s, 1).dst.pop_back(); });
  expect_dies(subject, backward, Fault::coverage, "an interval is left out", [&](Schedule& s) {
    scattered(s, 1).src.pop_back();
    scattered(s, 1).dst.pop_back();
  });
  expect_dies(subject, backward, Fault::malformed, "a sum into what it reads", [&](Schedule& s) {
    Accumulate& sum = scattered(s, 1);
    sum.src[0] = sum.dst[1];
    sum.src[0].row_end = sum.src[0].row_begin + sum.dst[0].rows();
  });
  expect_dies(subject, Direction::forward, Fault::mismatch,
              "one side of a message has two stretches", [](Schedule& s) {
                for (Step* step : steps_of<Transfer>(s, 1)) {
                  for (Message& m : as<Transfer>(step).receives) {
                    if (m.views.size() < 2) continue;
                    Slot other = s.programs[1].slot(m.views[1]);
                    other.name += "_other";
                    m.views[1].slot = static_cast<int>(s.programs[1].slots.size());
                    s.programs[1].slots.push_back(std::move(other));
                    return;
                  }
                }
              });
}

TEST(Mutants, GroupCastOfAWrongRange) {
  const Subject subject{Expression("group_cast"), Mask::from_slices(40, {{0, 40, 0, 40, -13, 0}}),
                        Layout(LayoutKind::contiguous, 40, 1, kRanks)};
  // A window of 14 reaches 3 keys of the rank before the last: [7, 10) of its 10.
  const auto find = [](Schedule& s) -> View& {
    for (Step* step : steps_of<Transfer>(s, 0)) {
      for (Message& m : as<Transfer>(step).sends) {
        for (View& view : m.views) {
          if (view.rows() == 3) return view;
        }
      }
    }
    throw std::logic_error("no such range");
  };
  expect_dies(subject, Direction::forward, Fault::coverage, "three other keys", [&](Schedule& s) {
    View& view = find(s);
    view.row_begin -= 1;
    view.row_end -= 1;
  });
  expect_dies(subject, Direction::forward, Fault::mismatch, "a key too few",
              [&](Schedule& s) { find(s).row_begin += 1; });
}

TEST(Mutants, BalancedRingThatLosesAHelpersResult) {
  const Subject subject{Expression("balanced_ring"), Mask::causal(40),
                        Layout(LayoutKind::contiguous, 40, 1, kRanks)};
  expect_dies(subject, Direction::forward, Fault::coverage, "a partial is not merged",
              [](Schedule& s) {
                auto sums = steps_of<Accumulate>(s, kRanks - 1);
                ASSERT_FALSE(sums.empty());
                Accumulate& sum = as<Accumulate>(sums[0]);
                sum.src.clear();
                sum.dst.clear();
              });
}

TEST(Mutants, DoubleRingWhoseOuterHopBringsTheWrongNode) {
  const Expression options = parse_scheme("double_ring(outer=2, inner=2)");
  const Subject subject{options, Mask::full(40), Layout(LayoutKind::zigzag, 40, 1, kRanks)};
  expect_dies(subject, Direction::forward, Fault::mismatch, "nodes swap ranks", [](Schedule& s) {
    for (const int rank : {0, 1, 2, 3}) {
      for (Step* step : steps_of<Transfer>(s, rank)) {
        if (step->stream != 1) continue;  // the outer ring's channel
        for (auto* side : {&as<Transfer>(step).sends, &as<Transfer>(step).receives}) {
          for (Message& m : *side) m.peer = m.peer / 2 * 2 + (1 - m.peer % 2);
        }
      }
    }
  });
}

// ---- what the verifier cannot see
// --------------------------------------------------------------------------------

/// Every scheme's run whose backward is fed by `sabotage` must miss the reference, far beyond its
/// bound, in the gradients named by their places in kTensors; without it it must not.
void expect_seen(const std::function<void(const test::BackwardFeed&)>& sabotage,
                 const std::vector<std::size_t>& wrong) {
  const test::Problem problem("causal", Mask::causal(64), test::ProblemSizes{8, 4, 8, 8});
  std::vector<test::SpreadJob> jobs;
  for (const Expression& options : test::all_schemes(kRanks, 8, 4))
    jobs.push_back({&problem, Layout(LayoutKind::contiguous, 64, 1, kRanks), options});
  const auto sound = run_jobs(jobs, kRanks);
  const auto broken = run_jobs(jobs, kRanks, {.sabotage = sabotage});
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    expect_right(jobs[j], sound[j]);
    for (const std::size_t t : wrong)
      EXPECT_GT(broken[j].error[t], 0.01) << show(jobs[j]) << " " << test::kTensors[t];
  }
}

TEST(Mutants, LocalLseInBackwardMissesTheReference) {
  // Each rank's LSE over its own keys alone, as after the first step of a ring.
  expect_seen(
      [](const test::BackwardFeed& feed) {
        const Tensor out({feed.q.size(0), feed.q.size(1), feed.v.size(2)}, runtime::DType::float32,
                         feed.stream);
        attention::block_forward(
            feed.q, feed.k, feed.v, attention::cut(feed.problem.masks.of(0), feed.runs, feed.runs),
            feed.problem.inputs.scoring, out, feed.lse, Mode::write, feed.stream);
      },
      {1, 2, 3});
}

TEST(Mutants, MissingDeltaMissesTheReference) {
  // dv does not depend on delta.
  expect_seen([](const test::BackwardFeed& feed) { runtime::fill(feed.delta, 0, feed.stream); },
              {1, 2});
}

}  // namespace
}  // namespace longhaul::parallel
