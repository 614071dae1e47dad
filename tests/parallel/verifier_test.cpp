// The verifier accepts every ring and rejects broken ones, each for the right reason.
#include "parallel/verifier/verifier.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>

#include "parallel/schemes/scheme.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;

constexpr LayoutKind kLayouts[] = {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped};

Schedule ring(const Mask& mask, const Layout& layout, Direction direction, int heads = 4,
              int kv_heads = 2) {
  const SchemeInputs inputs{
      mask, layout, {heads, kv_heads, 8, 8, runtime::DType::float32}, direction};
  return build_schedule(inputs);
}

std::vector<Mask> masks(std::int64_t n) {
  std::vector<Mask> all{Mask::full(n), Mask::causal(n)};
  const std::int64_t third = n / 3, half = n / 2;
  all.push_back(Mask::documents(std::vector<std::int64_t>{0, third, third, half, n}));
  std::vector<std::int64_t> singles;
  for (std::int64_t i = 0; i <= n; ++i) singles.push_back(i);
  all.push_back(Mask::documents(singles));
  if (n >= 4) {  // a window, a prefix that everybody sees, and rows that see nothing
    all.push_back(Mask::from_slices(n, {{half, n, 0, n, -3, 0}, {1, half, 0, 1}}));
  }
  return all;
}

TEST(Verifier, AcceptsTheRingEverywhere) {
  for (const std::int64_t n : {1, 2, 7, 29, 64}) {
    for (const Mask& mask : masks(n)) {
      for (const int ranks : {1, 2, 3, 4, 5, 7, 8, 13}) {
        for (const LayoutKind kind : kLayouts) {
          for (const Direction direction : {Direction::forward, Direction::backward}) {
            const Layout layout(kind, n, 1, ranks);
            const Verdict verdict = verify(ring(mask, layout, direction), mask, layout);
            EXPECT_TRUE(verdict.ok())
                << name(kind) << " P=" << ranks << " n=" << n << " " << name(direction) << ": "
                << name(verdict.fault) << ": " << verdict.message;
          }
        }
      }
    }
  }
}

TEST(Verifier, RejectsAnotherMaskThanTheSchedules) {
  const Layout layout(LayoutKind::zigzag, 40, 1, 4);
  EXPECT_EQ(
      verify(ring(Mask::causal(40), layout, Direction::forward), Mask::full(40), layout).fault,
      Fault::coverage);
  EXPECT_EQ(
      verify(ring(Mask::full(40), layout, Direction::backward), Mask::causal(40), layout).fault,
      Fault::coverage);
}

// ---- mutants
// --------------------------------------------------------------------------------------------

/// The n-th step of rank `rank` that holds an Op.
template <class Op>
Step& nth(Schedule& schedule, int rank, int n) {
  for (Step& step : schedule.programs[static_cast<std::size_t>(rank)].steps) {
    if (std::holds_alternative<Op>(step.operation) && n-- == 0) return step;
  }
  throw std::logic_error("no such step");
}
template <class Op>
Op& op(Schedule& schedule, int rank, int n) {
  return std::get<Op>(nth<Op>(schedule, rank, n).operation);
}

struct Mutant {
  const char* name;
  Direction direction;
  Fault expected;
  std::function<void(Schedule&)> breaks;
};

const Mutant kMutants[] = {
    {"a dropped last hop", Direction::forward, Fault::deadlock,
     [](Schedule& s) { op<Transfer>(s, 1, 2).sends.clear(); }},
    {"a last hop dropped on both sides, its block attended from a stale buffer", Direction::forward,
     Fault::coverage,
     [](Schedule& s) {
       for (int rank = 0; rank < 4; ++rank) {
         Transfer& last = op<Transfer>(s, rank, 2);
         last.sends.clear();
         last.receives.clear();
       }
     }},
    {"a stale buffer: an earlier block is attended again", Direction::forward, Fault::coverage,
     [](Schedule& s) {
       for (int rank = 0; rank < 4; ++rank) op<Attend>(s, rank, 2).kv = op<Attend>(s, rank, 0).kv;
     }},
    {"a swapped half: keys of the other half of the block", Direction::forward, Fault::coverage,
     [](Schedule& s) {
       Attend& attend = op<Attend>(s, 3, 1);
       for (Slice& band : attend.bands) band = {band.q_begin, band.q_end, 5, 10, band.lo, band.hi};
     }},
    {"a missing receive", Direction::forward, Fault::deadlock,
     [](Schedule& s) { op<Transfer>(s, 2, 2).receives.clear(); }},
    {"a missing first receive", Direction::forward, Fault::undefined,
     [](Schedule& s) { op<Transfer>(s, 2, 0).receives.clear(); }},
    {"a missing last send", Direction::backward, Fault::deadlock,
     [](Schedule& s) { op<Transfer>(s, 2, 5).sends.clear(); }},
    {"a missing send in the middle: what follows it is taken for it", Direction::backward,
     Fault::mismatch, [](Schedule& s) { op<Transfer>(s, 2, 1).sends.clear(); }},
    {"a double-counted tile", Direction::forward, Fault::coverage,
     [](Schedule& s) {
       auto& bands = op<Attend>(s, 1, 0).bands;
       bands.push_back(bands.front());
     }},
    {"a tile attended by nobody", Direction::forward, Fault::coverage,
     [](Schedule& s) { op<Attend>(s, 1, 0).bands.front().q_end -= 1; }},
    {"a first attend that merges into undefined rows", Direction::forward, Fault::undefined,
     [](Schedule& s) { op<Attend>(s, 0, 0).mode = Mode::add; }},
    {"a later attend that overwrites", Direction::forward, Fault::coverage,
     [](Schedule& s) { op<Attend>(s, 0, 1).mode = Mode::write; }},
    {"an attend that does not wait for its keys", Direction::forward, Fault::hazard,
     [](Schedule& s) { nth<Attend>(s, 1, 1).waits.clear(); }},
    {"a hop that does not wait for the buffer to be read", Direction::forward, Fault::hazard,
     [](Schedule& s) {
       for (auto& step : s.programs[1].steps) {
         if (std::holds_alternative<Transfer>(step.operation)) step.waits.clear();
       }
     }},
    {"a wrong peer", Direction::forward, Fault::mismatch,
     [](Schedule& s) {
       // Ranks 0 and 2 send to each other's neighbour: rows and tags of the wrong block arrive.
       std::swap(op<Transfer>(s, 0, 0).sends[0].peer, op<Transfer>(s, 2, 0).sends[0].peer);
       std::swap(op<Transfer>(s, 1, 0).receives[0].peer, op<Transfer>(s, 3, 0).receives[0].peer);
     }},
    {"gradients of a tile counted twice", Direction::backward, Fault::coverage,
     [](Schedule& s) {
       auto& bands = op<AttendBackward>(s, 2, 1).bands;
       bands.push_back(bands.front());
     }},
    {"an accumulator added twice", Direction::backward, Fault::coverage,
     [](Schedule& s) {
       auto& steps = s.programs[2].steps;
       steps.push_back(steps.back());  // the last step adds what came home
       ASSERT_TRUE(std::holds_alternative<Accumulate>(steps.back().operation));
     }},
    {"an accumulator that overwrites instead of adding", Direction::backward, Fault::coverage,
     [](Schedule& s) {
       Step& last = s.programs[1].steps.back();
       const Accumulate home = std::get<Accumulate>(last.operation);
       last.operation = Copy{{home.src.at(0)}, {home.dst.at(0)}};
     }},
    {"an accumulator that never comes home", Direction::backward, Fault::coverage,
     [](Schedule& s) { s.programs[1].steps.pop_back(); }},
    {"a write to an input", Direction::forward, Fault::malformed,
     [](Schedule& s) { op<Transfer>(s, 1, 0).receives[0].views[0].slot = 1; }},
    {"a view that leaves its slot", Direction::forward, Fault::malformed,
     [](Schedule& s) { op<Attend>(s, 1, 0).q.row_end += 1; }},
    {"a cast of keys on the wire", Direction::forward, Fault::malformed,
     [](Schedule& s) { op<Transfer>(s, 1, 0).sends[0].wire_dtype = runtime::DType::bfloat16; }},
    {"a wire dtype on one side only", Direction::backward, Fault::mismatch,
     [](Schedule& s) { op<Transfer>(s, 1, 2).sends[0].wire_dtype = runtime::DType::bfloat16; }},
    {"two receives of a group into the same rows", Direction::forward, Fault::malformed,
     [](Schedule& s) {
       auto& receives = op<Transfer>(s, 1, 0).receives;
       receives.push_back(receives[0]);
     }},
    {"two receives of a group that share rows and heads", Direction::forward, Fault::malformed,
     [](Schedule& s) {
       auto& receives = op<Transfer>(s, 1, 0).receives;
       receives.push_back(receives[0]);
       receives[1].views[0].row_begin += 1;
       receives[1].views[0].head_begin += 1;
     }},
    {"a group that sends what it receives into", Direction::forward, Fault::malformed,
     [](Schedule& s) {
       Transfer& transfer = op<Transfer>(s, 1, 0);
       transfer.sends[0].views = transfer.receives[0].views;
     }},
    {"keys of another head group", Direction::forward, Fault::misplaced,
     [](Schedule& s) {
       Attend& attend = op<Attend>(s, 1, 0);
       attend.q.head_end = attend.partial.head_end = 2;
       attend.kv.head_begin = 1;
     }},
    {"a rank that does nothing", Direction::forward, Fault::malformed,
     [](Schedule& s) { s.programs[1].slots.clear(), s.programs[1].steps.clear(); }},
    {"no programs", Direction::forward, Fault::malformed, [](Schedule& s) { s.programs.clear(); }},
    {"another rank's program", Direction::forward, Fault::malformed,
     [](Schedule& s) { s.programs[1] = s.programs[0]; }},
    {"gradients that stay in scratch", Direction::backward, Fault::malformed,
     [](Schedule& s) {
       for (Slot& slot : s.programs[1].slots) {
         if (slot.name == "dkv") slot.role = Role::scratch;
       }
     }},
    {"two outputs of one name", Direction::forward, Fault::malformed,
     [](Schedule& s) { s.programs[0].slots.push_back(s.programs[0].slots[2]); }},
    {"queries and outputs of another rank", Direction::forward, Fault::misplaced,
     [](Schedule& s) {
       for (const std::size_t slot : {0u, 2u})
         std::swap(s.programs[0].slots[slot].tokens, s.programs[1].slots[slot].tokens);
     }},
    {"scratch that nothing uses", Direction::forward, Fault::malformed,
     [](Schedule& s) {
       s.programs[2].slots.push_back({"more", AttentionRecords(s.shapes).kv, 3, 1});
     }},
    {"an output declared as other tokens", Direction::forward, Fault::misplaced,
     [](Schedule& s) { s.programs[0].slots[2].tokens = s.programs[1].slots[2].tokens; }},
};

TEST(Verifier, RejectsEveryMutantForTheRightReason) {
  const Mask mask = Mask::full(40);
  const Layout layout(LayoutKind::zigzag, 40, 1, 4);
  for (const Mutant& mutant : kMutants) {
    Schedule schedule = ring(mask, layout, mutant.direction);
    ASSERT_TRUE(verify(schedule, mask, layout).ok());
    mutant.breaks(schedule);
    const Verdict verdict = verify(schedule, mask, layout);
    EXPECT_EQ(name(verdict.fault), std::string(name(mutant.expected)))
        << mutant.name << ": " << verdict.message;
    EXPECT_FALSE(verdict.message.empty()) << mutant.name;
  }
}

TEST(Verifier, RejectsMasksOfOtherHeads) {
  const Layout layout(LayoutKind::zigzag, 40, 1, 4);
  const Schedule schedule = ring(Mask::full(40), layout, Direction::forward);  // 4 heads
  const auto masks = attention::HeadMasks::per_head(
      {Mask::full(40), Mask::full(40), Mask::full(40), Mask::full(40), Mask::causal(40)});
  EXPECT_EQ(verify(schedule, masks, layout).fault, Fault::malformed);
}

TEST(Verifier, ProvesThePeakOfScratch) {
  const Layout layout(LayoutKind::zigzag, 41, 1, 4);
  const Schedule schedule = ring(Mask::full(41), layout, Direction::backward);
  std::int64_t most = 0;
  for (const Program& program : schedule.programs)
    most = std::max(most, count(program).scratch_bytes);
  const Verdict verdict = verify(schedule, Mask::full(41), layout);
  ASSERT_TRUE(verdict.ok()) << verdict.message;
  EXPECT_EQ(verdict.peak_scratch_bytes, most);
  EXPECT_GT(most, 0);
}

TEST(Verifier, RejectsADiagonalMovedByOne) {
  const Mask mask = Mask::causal(41);
  for (const LayoutKind kind : kLayouts) {
    const Layout layout(kind, 41, 1, 3);
    Schedule schedule = ring(mask, layout, Direction::forward);
    Slice& band = op<Attend>(schedule, 2, 0).bands.front();
    band.hi -= 1;
    EXPECT_EQ(verify(schedule, mask, layout).fault, Fault::coverage) << name(kind);
  }
}

TEST(Verifier, AcceptsTheRingAt512RanksInSeconds) {
  const std::int64_t n = 512 * 16 + 5;
  const Mask mask = Mask::causal(n);
  const Layout layout(LayoutKind::zigzag, n, 1, 512);
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    const auto begin = std::chrono::steady_clock::now();
    const Schedule schedule = ring(mask, layout, direction);
    const auto built = std::chrono::steady_clock::now();
    const Verdict verdict = verify(schedule, mask, layout);
    const auto verified = std::chrono::steady_clock::now();
    EXPECT_TRUE(verdict.ok()) << verdict.message;
    const double build_seconds = std::chrono::duration<double>(built - begin).count();
    const double verify_seconds = std::chrono::duration<double>(verified - built).count();
    RecordProperty(std::string(name(direction)) + "_seconds",
                   std::to_string(build_seconds + verify_seconds));
    std::printf("P=512 %s: built in %.2f s, verified in %.2f s\n", name(direction), build_seconds,
                verify_seconds);
    EXPECT_LT(build_seconds + verify_seconds, 60.0);  // a generous bound for a busy machine
  }
}

// ---- counts
// ---------------------------------------------------------------------------------------------

TEST(Count, RingBytesAreTheClosedFormula) {
  // X = n H_kv elements a row-width; forward X (D + D_v) e (P-1), backward the same plus X (D +
  // D_v) a (P-1).
  const std::int64_t n = 16;
  for (const int ranks : {1, 2, 3, 5, 8}) {
    const Mask mask = Mask::full(n * ranks);
    for (const LayoutKind kind : kLayouts) {
      const Layout layout(kind, n * ranks, 1, ranks);
      for (const runtime::DType activation : {runtime::DType::float32, runtime::DType::bfloat16}) {
        const Shapes shapes{6, 3, 8, 4, activation};
        for (const Direction direction : {Direction::forward, Direction::backward}) {
          const SchemeInputs inputs{mask, layout, shapes, direction};
          const Schedule schedule = build_schedule(inputs);
          const std::int64_t e = runtime::size_bytes(activation),
                             a = direction == Direction::backward ? 4 : 0;
          for (const Program& program : schedule.programs) {
            EXPECT_EQ(count(program).sent_bytes, n * 3 * (8 + 4) * (e + a) * (ranks - 1));
            EXPECT_EQ(count(program).pairs, 6 * n * n * ranks);
          }
        }
      }
    }
  }
}

TEST(Count, BlocksTravelNoFurtherThanTheyAreSeen) {
  const std::int64_t n = 8;
  const int ranks = 6;
  const Shapes shapes{2, 1, 4, 4, runtime::DType::float32};
  const std::int64_t block_bytes = n * 8 * 4;
  const Layout layout(LayoutKind::contiguous, n * ranks, 1, ranks);
  const auto sent = [&](const Mask& mask, Direction direction) {
    const SchemeInputs inputs{mask, layout, shapes, direction};
    std::int64_t bytes = 0;
    for (const Program& program : build_schedule(inputs).programs) {
      bytes += count(program).sent_bytes;
    }
    return bytes;
  };
  // Contiguous causal: block j is seen by the P-1-j later ranks.
  EXPECT_EQ(sent(Mask::causal(n * ranks), Direction::forward),
            block_bytes * ranks * (ranks - 1) / 2);
  // Every document within a rank: nothing moves.
  std::vector<std::int64_t> offsets;
  for (std::int64_t at = 0; at <= n * ranks; at += n / 2) offsets.push_back(at);
  EXPECT_EQ(sent(Mask::documents(offsets), Direction::forward), 0);
  EXPECT_EQ(sent(Mask::documents(offsets), Direction::backward), 0);
  // A window of n + 1 keys: one halo each.
  const Mask window = Mask::from_slices(n * ranks, {{0, n * ranks, 0, n * ranks, -n, 0}});
  EXPECT_EQ(sent(window, Direction::forward), block_bytes * (ranks - 1));
  EXPECT_EQ(sent(window, Direction::backward), 2 * block_bytes * (ranks - 1));
}

}  // namespace
}  // namespace longhaul::parallel
