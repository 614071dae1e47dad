// Halo schedules are proven for every layout, and mutants of them die.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <random>

#include "parallel/verifier/verify_halo.h"
#include "tests/support/conv_oracle.h"
#include "tests/support/halo_cases.h"

namespace longhaul::parallel {
namespace {

void expect_verifies(const Layout& layout, const std::vector<std::int64_t>& documents,
                     std::int64_t width) {
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    const Schedule schedule =
        build_halo_schedule(test::halo_inputs(layout, documents, width, direction));
    const Verdict verdict = verify_halo(schedule, documents, width, layout);
    EXPECT_TRUE(verdict.ok()) << name(layout.kind()) << " P=" << layout.ranks()
                              << " n=" << layout.tokens() << " K=" << width << " "
                              << name(direction) << ": " << verdict.message;
    EXPECT_EQ(verdict.peak_scratch_bytes, 0);
  }
}

TEST(HaloVerifier, VerifiesForEveryLayout) {
  for (const int ranks : {1, 2, 3, 4, 5, 7, 8, 12, 32}) {
    for (const std::int64_t n : {0, 1, 5, 37, 130}) {
      for (const auto& documents : test::document_offsets(n)) {
        for (const Layout& layout : test::consecutive_layouts(documents, ranks)) {
          for (std::int64_t width = 1; width <= 5; ++width)
            expect_verifies(layout, documents, width);
        }
      }
    }
    if (HasFailure()) return;
  }
}

TEST(HaloVerifier, VerifiesAt512RanksWith4096Documents) {
  constexpr int kRanks = 512;
  constexpr std::int64_t kTokens = kRanks * 20 + 5;
  std::mt19937 random(3);
  std::vector<std::int64_t> documents{0, kTokens / 2, kTokens};  // one of half of the tokens
  while (documents.size() <= 4096)
    documents.push_back(kTokens / 2 + static_cast<std::int64_t>(random() % (kTokens / 2)));
  std::ranges::sort(documents);
  const auto begin = std::clock();
  for (const Layout& layout : test::consecutive_layouts(documents, kRanks))
    expect_verifies(layout, documents, 4);
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  std::printf("P=512: four layouts, built and verified both ways in %.2f s\n", seconds);
  EXPECT_LT(seconds, 60.0);  // of one core; several times what it takes
}

/// A way to break a schedule: what is expected, and whether it found something to break.
struct Mutation {
  const char* name;
  Fault fault;
  std::function<bool(Schedule&)> breaks;
};

/// The first transfer for which `breaks` does something.
bool in_a_transfer(Schedule& schedule, const std::function<bool(Program&, Transfer&)>& breaks) {
  for (Program& program : schedule.programs) {
    for (Step& step : program.steps) {
      if (breaks(program, std::get<Transfer>(step.operation))) return true;
    }
  }
  return false;
}
Slot& halo_of(Program& program) { return program.slots[1]; }
/// Its tokens, a run for each row.
std::vector<Run> by_row(const Slot& slot) {
  std::vector<Run> rows;
  for (const Run& run : slot.tokens) {
    for (std::int64_t i = 0; i < run.count; ++i) rows.push_back({run[i], 1});
  }
  return rows;
}

const Mutation kMutations[] = {
    {"rows of a halo arrive in each other's place", Fault::misplaced,
     [](Schedule& s) {
       return in_a_transfer(s, [](Program&, Transfer& t) {
         std::vector<View*> views;
         for (Message& m : t.receives) {
           for (View& v : m.views) views.push_back(&v);
         }
         for (std::size_t i = 0; i < views.size(); ++i) {
           for (std::size_t j = 0; j < i; ++j) {
             if (views[i]->rows() != views[j]->rows()) continue;
             std::swap(*views[i], *views[j]);
             return true;
           }
         }
         return false;
       });
     }},
    {"a row of the token before is sent", Fault::misplaced,
     [](Schedule& s) {
       return in_a_transfer(s, [](Program&, Transfer& t) {
         for (Message& m : t.sends) {
           for (View& v : m.views) {
             if (v.row_begin == 0) continue;
             --v.row_begin, --v.row_end;
             return true;
           }
         }
         return false;
       });
     }},
    {"a send is missing", Fault::deadlock,
     [](Schedule& s) {
       return in_a_transfer(s, [](Program& program, Transfer& t) {
         return std::erase_if(t.sends, [&](const Message& m) { return m.peer != program.rank; }) >
                0;
       });
     }},
    {"a message is missing on both sides", Fault::undefined,
     [](Schedule& s) {
       int reader = -1, owner = -1;
       in_a_transfer(s, [&](Program& program, Transfer& t) {
         for (std::size_t m = 0; m < t.sends.size(); ++m) {
           if (t.sends[m].peer == program.rank) continue;
           owner = program.rank, reader = t.sends[m].peer;
           t.sends.erase(t.sends.begin() + static_cast<std::ptrdiff_t>(m));
           return true;
         }
         return false;
       });
       if (reader < 0) return false;
       for (Step& step : s.programs[static_cast<std::size_t>(reader)].steps) {
         std::erase_if(std::get<Transfer>(step.operation).receives,
                       [&](const Message& m) { return m.peer == owner; });
       }
       return true;
     }},
    {"a run's halo is left out", Fault::malformed,
     [](Schedule& s) {
       for (Program& program : s.programs) {
         Slot& halo = halo_of(program);
         if (halo.tokens.empty()) continue;
         halo.rows -= halo.tokens.back().count;
         halo.tokens.pop_back();
         return true;
       }
       return false;
     }},
    {"a run's halo is of other tokens", Fault::misplaced,
     [](Schedule& s) {
       for (Program& program : s.programs) {
         for (Run& run : halo_of(program).tokens) {
           if (run.first == 0) continue;
           --run.first;
           return true;
         }
       }
       return false;
     }},
    {"a halo of other tokens, sent and declared alike", Fault::misplaced,
     [](Schedule& s) {
       return in_a_transfer(s, [&](Program& program, Transfer& t) {
         for (Message& sent : t.sends) {
           View& rows = sent.views.front();
           if (rows.row_begin == 0) continue;
           --rows.row_begin, --rows.row_end;
           Program& reader = s.programs[static_cast<std::size_t>(sent.peer)];
           const auto& received = std::get<Transfer>(reader.steps.front().operation).receives;
           const auto from = std::ranges::find(received, program.rank, &Message::peer);
           const std::vector<Run> held = by_row(program.slots[0]);
           std::vector<Run> tokens = by_row(halo_of(reader));
           std::copy(held.begin() + rows.row_begin, held.begin() + rows.row_end,
                     tokens.begin() + from->views.front().row_begin);
           halo_of(reader).tokens = tokens;
           return true;
         }
         return false;
       });
     }},
    {"rows of another rank", Fault::misplaced,
     [](Schedule& s) {
       std::swap(s.programs[0].slots[0].tokens, s.programs[1].slots[0].tokens);
       return s.programs[0].slots[0].rows == s.programs[1].slots[0].rows;
     }},
};

TEST(HaloVerifier, MutantsDie) {
  // Runs of two tokens: a halo of four is of at least two ranks.
  constexpr int kRanks = 4;
  const std::vector<std::int64_t> documents{0, 1, 12, 16};
  const Layout layout(LayoutKind::zigzag, 16, 1, kRanks);
  for (const Direction direction : {Direction::forward, Direction::backward}) {
    for (const Mutation& mutation : kMutations) {
      Schedule schedule = build_halo_schedule(test::halo_inputs(layout, documents, 5, direction));
      ASSERT_TRUE(mutation.breaks(schedule)) << mutation.name;
      const Verdict verdict = verify_halo(schedule, documents, 5, layout);
      EXPECT_EQ(name(verdict.fault), std::string(name(mutation.fault)))
          << mutation.name << ", " << name(direction) << ": " << verdict.message;
    }
    // A schedule of other documents, and of another width, is none of these.
    const Schedule schedule = build_halo_schedule(test::halo_inputs(layout, {0, 16}, 5, direction));
    EXPECT_FALSE(verify_halo(schedule, documents, 5, layout).ok());
    EXPECT_TRUE(verify_halo(schedule, std::vector<std::int64_t>{0, 16}, 5, layout).ok());
    EXPECT_FALSE(verify_halo(schedule, std::vector<std::int64_t>{0, 16}, 3, layout).ok());
    EXPECT_FALSE(verify_halo(schedule, std::vector<std::int64_t>{0, 15}, 5, layout).ok());
  }
}

}  // namespace
}  // namespace longhaul::parallel
