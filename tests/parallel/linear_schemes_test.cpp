// Every linear scheme over threads of one process: right on every rank, in what it sends, and bit
// for bit where the order of operations is the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attention/linear.h"
#include "tests/support/linear_cases.h"
#include "tests/support/spread_linear.h"

namespace longhaul::parallel {
namespace {

using attention::LinearShape;
using attention::Mask;
using runtime::DType;
using test::Gates;
using test::linear_problem;
using test::LinearAnswer;
using test::LinearErrors;
using test::LinearJob;
using test::LinearProblem;

using Offsets = std::vector<std::int64_t>;

/// All jobs of one number of ranks, held against the reference.
void expect_right(const std::vector<LinearJob>& jobs, int ranks) {
  const auto answers = test::run_linear_jobs(jobs, ranks);
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const bool bf16 = jobs[j].problem->inputs.shape.activation == DType::bfloat16;
    const LinearErrors errors = test::linear_errors(*jobs[j].problem, answers[j]);
    EXPECT_LE(errors.values, bf16 ? 5e-3 : 2e-6) << show(jobs[j]) << ": " << errors.worst;
    EXPECT_LE(errors.gates, bf16 ? 5e-3 : 1e-5) << show(jobs[j]);
  }
}

void add_jobs(const LinearProblem& problem, int ranks, std::vector<LinearJob>& jobs) {
  for (const Layout& layout : test::run_layouts(problem.masks(), problem.batch, ranks)) {
    for (const Expression& scheme :
         test::linear_schemes(static_cast<int>(problem.inputs.shape.key_heads)))
      jobs.push_back({&problem, layout, scheme});
  }
}

TEST(LinearSchemes, AreRightForEveryKindMaskLayoutAndNumberOfRanks) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8}) {
    std::vector<LinearProblem> problems;
    std::uint32_t seed = 1;
    for (const char* kind : attention::recurrence_kinds()) {
      const LinearShape shape{2 * 83, 4, 2, 8, 6};
      for (const Offsets& offsets : {Offsets{0}, Offsets{0, 1, 17, 18, 52}}) {
        problems.push_back(linear_problem(kind, shape, 2, offsets, Gates::mild, ++seed));
        problems.back().initial_state = ranks % 2 != 0;
        problems.back().final_state = ranks % 3 != 0;
      }
    }
    std::vector<LinearJob> jobs;
    for (const LinearProblem& problem : problems) add_jobs(problem, ranks, jobs);
    expect_right(jobs, ranks);
  }
}

TEST(LinearSchemes, AreRightOverGatesOfEveryStrength) {
  std::vector<LinearProblem> problems;
  for (const char* kind : {"scalar", "vector", "gated_delta", "kda"}) {
    for (const Gates gates : test::kAllGates) {
      if (gates == Gates::slopes) continue;
      problems.push_back(linear_problem(kind, {257, 2, 1, 16, 16}, 1, {0, 101}, gates));
    }
  }
  problems.push_back(linear_problem("decay", {257, 4, 2, 16, 16}, 1, {0, 101}, Gates::slopes));
  for (const int ranks : {3, 5}) {
    std::vector<LinearJob> jobs;
    for (const LinearProblem& problem : problems) add_jobs(problem, ranks, jobs);
    expect_right(jobs, ranks);
  }
}

TEST(LinearSchemes, AreRightOverTinyRunsAndEmptyRanks) {
  for (const int ranks : {4, 7, 8}) {
    std::vector<LinearProblem> problems;
    for (const char* kind : attention::recurrence_kinds()) {
      for (const std::int64_t n : {1, 3, 9, 13})
        problems.push_back(linear_problem(kind, {n, 2, 2, 4, 5}, 1, {0, 2, 5}));
    }
    std::vector<LinearJob> jobs;
    for (const LinearProblem& problem : problems) add_jobs(problem, ranks, jobs);
    expect_right(jobs, ranks);
  }
}

TEST(LinearSchemes, AreRightInBfloat16) {
  std::vector<LinearProblem> problems;
  for (const char* kind : attention::recurrence_kinds()) {
    LinearShape shape{131, 4, 2, 16, 8};
    shape.activation = DType::bfloat16;
    problems.push_back(linear_problem(kind, shape, 1, {0, 37}));
  }
  std::vector<LinearJob> jobs;
  for (const LinearProblem& problem : problems) add_jobs(problem, 4, jobs);
  expect_right(jobs, 4);
}

TEST(LinearSchemes, AreRightWithoutCausality) {
  std::vector<LinearProblem> problems;
  for (const std::int64_t batch : {1, 3}) {
    problems.push_back(linear_problem("linear", {batch * 41, 4, 2, 8, 6}, batch, {0}));
    problems.back().inputs.recurrence.causal = false;
    problems.back().inputs.starts.clear();
  }
  for (const int ranks : {1, 2, 3, 5, 8}) {
    std::vector<LinearJob> jobs;
    for (const LinearProblem& problem : problems) {
      for (const Layout& layout : test::run_layouts(problem.masks(), problem.batch, ranks))
        jobs.push_back({&problem, layout, "lasp2"});
    }
    expect_right(jobs, ranks);
  }
}

/// Summaries and folds are exact: over 32 ranks the error grows by less than half.
TEST(LinearSchemes, LoseNothingOver32Ranks) {
  for (const char* kind : attention::recurrence_kinds()) {
    const LinearProblem problem = linear_problem(kind, {1024, 2, 1, 16, 16}, 1, {0}, Gates::slow);
    const auto error = [&](const Expression& scheme, int ranks) {
      const LinearJob job{&problem, Layout(LayoutKind::zigzag, 1024, 1, ranks), scheme};
      return test::linear_errors(problem, test::run_linear_jobs({&job, 1}, ranks)[0]).values;
    };
    for (const char* scheme : {"lasp", "lasp2", "all_scan", "exscan"}) {
      const double spread = error(scheme, 32);
      EXPECT_LE(spread, 1.5 * error(scheme, 1) + 1e-8) << kind << " " << scheme;
      EXPECT_LE(spread, 2e-6) << kind << " " << scheme;
    }
  }
}

// ---- bits

/// Folds go from left to right wherever they are made.
TEST(LinearSchemes, FoldTheSameStatesBitForBit) {
  for (const char* kind : attention::recurrence_kinds()) {
    const LinearProblem problem = linear_problem(kind, {149, 4, 2, 8, 6}, 1, {0, 70});
    for (const LayoutKind layout : {LayoutKind::contiguous, LayoutKind::zigzag}) {
      std::vector<LinearJob> jobs;
      for (const char* scheme :
           {"lasp2", "lasp", "lasp(groups=2)", "all_scan(blocks=1)", "all_scan(blocks=4)"})
        jobs.push_back(
            {&problem, Layout(layout, 149, 1, 5), parse_scheme(scheme, {}, Family::linear)});
      const auto answers = test::run_linear_jobs(jobs, 5);
      const auto again = test::run_linear_jobs(jobs, 5, 3);
      for (std::size_t j = 0; j < jobs.size(); ++j) {
        EXPECT_EQ(answers[j].kept, answers[0].kept) << show(jobs[j]);
        EXPECT_TRUE(answers[j].same_bits(answers[0])) << show(jobs[j]);
        EXPECT_TRUE(again[j].same_bits(answers[j])) << show(jobs[j]) << ", again";
      }
    }
  }
}

/// Where runs begin on the chunk grid, a state that sweeps carry is one rank's.
TEST(LinearSchemes, ReplayRepeatsOneRankBitForBit) {
  for (const char* kind : attention::recurrence_kinds()) {
    const LinearProblem problem = linear_problem(kind, {512, 4, 2, 8, 6}, 1, {0});
    const LinearJob one{&problem, Layout(LayoutKind::contiguous, 512, 1, 1), "lasp2"};
    const LinearAnswer alone = test::run_linear_jobs({&one, 1}, 1)[0];
    for (const int ranks : {2, 4}) {
      for (const LayoutKind layout : {LayoutKind::contiguous, LayoutKind::zigzag}) {
        const LinearJob job{&problem, Layout(layout, 512, 1, ranks),
                            parse_scheme("lasp(replay=true)", {}, Family::linear)};
        LinearAnswer spread = test::run_linear_jobs({&job, 1}, ranks)[0];
        if (problem.inputs.recurrence.decay == attention::Decay::head)
          spread.dlog_decay = alone.dlog_decay;  // summed over ranks, in another order
        EXPECT_TRUE(spread.same_bits(alone)) << show(job);
      }
    }
  }
}

// ---- documents

TEST(LinearSchemes, KeepDocumentsApart) {
  for (const char* kind : attention::recurrence_kinds()) {
    const Offsets offsets{0, 37, 88, 128};  // the second over several ranks
    LinearProblem problem = linear_problem(kind, {128, 2, 1, 8, 8}, 1, {0, 37, 88});
    LinearProblem poisoned = problem;
    const auto poison = [&](std::vector<float>& values) {
      const std::size_t width = values.size() / 128;  // none where there is no such input
      for (std::size_t i = 37 * width; i < 88 * width; ++i) values[i] = std::nanf("");
    };
    poison(poisoned.inputs.q);
    poison(poisoned.inputs.k);
    poison(poisoned.inputs.v);
    poison(poisoned.inputs.dout);
    poison(poisoned.inputs.beta);
    if (problem.inputs.recurrence.decay != attention::Decay::head)
      poison(poisoned.inputs.log_decay);
    for (const int ranks : {2, 5}) {
      std::vector<LinearJob> jobs;
      add_jobs(problem, ranks, jobs);
      std::vector<LinearJob> poisoned_jobs;
      add_jobs(poisoned, ranks, poisoned_jobs);
      const auto clean = test::run_linear_jobs(jobs, ranks),
                 dirty = test::run_linear_jobs(poisoned_jobs, ranks);
      for (std::size_t j = 0; j < jobs.size(); ++j) {
        const auto same = [&](const std::vector<float>& a, const std::vector<float>& b) {
          const std::size_t width = a.size() / 128;
          for (std::size_t i = 0; i < a.size(); ++i) {
            if ((i < 37 * width || i >= 88 * width) && a[i] != b[i]) return false;
          }
          return true;
        };
        EXPECT_TRUE(same(clean[j].out, dirty[j].out)) << show(jobs[j]);
        EXPECT_TRUE(same(clean[j].dq, dirty[j].dq)) << show(jobs[j]);
        EXPECT_TRUE(same(clean[j].dk, dirty[j].dk)) << show(jobs[j]);
        EXPECT_TRUE(same(clean[j].dv, dirty[j].dv)) << show(jobs[j]);
        EXPECT_TRUE(same(clean[j].dbeta, dirty[j].dbeta)) << show(jobs[j]);
        if (problem.inputs.recurrence.decay != attention::Decay::head) {
          EXPECT_TRUE(same(clean[j].dlog_decay, dirty[j].dlog_decay)) << show(jobs[j]);
        }
      }
    }
  }
}

TEST(LinearSchemes, SendNothingAcrossADocumentsStart) {
  for (const char* kind : attention::recurrence_kinds()) {
    const LinearProblem problem = linear_problem(kind, {60, 2, 1, 8, 8}, 1, {0, 20, 40});
    std::vector<LinearJob> jobs;
    for (const Expression& scheme : test::linear_schemes(1))
      jobs.push_back({&problem, Layout(LayoutKind::contiguous, 60, 1, 3), scheme});
    for (const LinearAnswer& answer : test::run_linear_jobs(jobs, 3)) {
      for (const auto& sent : answer.sent) EXPECT_TRUE(sent.empty());
    }
  }
}

/// Changing a token leaves what is before it bit for bit, on whatever rank.
TEST(LinearSchemes, LookOnlyBack) {
  for (const char* kind : attention::recurrence_kinds()) {
    const LinearProblem problem = linear_problem(kind, {140, 2, 1, 8, 8}, 1, {0});
    for (const std::int64_t token : {14, 28, 63, 64, 65, 84}) {  // borders of ranks, of chunks
      LinearProblem changed = problem;
      for (std::vector<float>* values : {&changed.inputs.q, &changed.inputs.k, &changed.inputs.v,
                                         &changed.inputs.log_decay, &changed.inputs.beta}) {
        const std::size_t width = values->size() / 140;  // none of what is not per token
        for (std::size_t i = 0; i < width; ++i)
          (*values)[static_cast<std::size_t>(token) * width + i] *= 0.5f;
      }
      std::vector<LinearJob> jobs;
      for (const LinearProblem* p : {&problem, static_cast<const LinearProblem*>(&changed)}) {
        for (const LayoutKind layout : {LayoutKind::contiguous, LayoutKind::zigzag}) {
          for (const Expression& scheme : test::linear_schemes(1))
            jobs.push_back({p, Layout(layout, 140, 1, 5), scheme});
        }
      }
      const auto answers = test::run_linear_jobs(jobs, 5);
      const std::size_t half = jobs.size() / 2;
      for (std::size_t j = 0; j < half; ++j) {
        const auto &a = answers[j].out, &b = answers[half + j].out;
        const auto before = static_cast<std::int64_t>(a.size()) / 140 * token;
        EXPECT_TRUE(std::equal(a.begin(), a.begin() + before, b.begin())) << show(jobs[j]);
        EXPECT_FALSE(a == b);
      }
    }
  }
}

// ---- bytes

struct Sizes {
  std::int64_t state, transition;  ///< bytes
};
Sizes sizes_of(const Shapes& shapes) {
  const std::int64_t width = attention::transition_width(shapes.linear->recurrence, shapes.dim),
                     rows = attention::transition_rows(shapes.linear->recurrence, shapes.dim);
  return {4 * shapes.heads * shapes.dim * shapes.value_dim,
          width == 0 ? 0 : 4 * shapes.heads * rows * width};
}

std::int64_t received(const Schedule& schedule, int rank) {
  std::int64_t bytes = 0;
  for (const Program& program : schedule.programs) {
    const Count counted = count(program);
    const auto found = counted.sent_to.find(rank);
    if (found != counted.sent_to.end()) bytes += found->second;
  }
  return bytes;
}

/// The formulae of each scheme's file, for one document, whatever its length.
TEST(LinearSchemes, ReceiveWhatTheirFormulaeSay) {
  for (const char* kind : attention::recurrence_kinds()) {
    const Shapes shapes = test::linear_shapes(kind, 6, 3, 8, 5);
    const auto [m, t] = sizes_of(shapes);
    for (const int ranks : {1, 2, 3, 4, 5, 7, 8, 16}) {
      for (const std::int64_t n : {64 * ranks, 96 * ranks}) {
        for (const LayoutKind kind_of_layout : {LayoutKind::contiguous, LayoutKind::zigzag}) {
          const Layout layout(kind_of_layout, n, 1, ranks);
          const bool zigzag = kind_of_layout == LayoutKind::zigzag;
          // The last two halves of a zigzag layout are one run.
          const auto last = zigzag ? 2 * ranks - 2 : ranks - 1;
          const auto runs_of = [&](int rank) {
            std::vector<int> runs{rank};
            if (zigzag && rank + 1 < ranks) runs.push_back(last - rank);
            return runs;
          };
          for (const Direction direction : {Direction::forward, Direction::backward}) {
            for (const Expression& scheme : test::linear_schemes(3)) {
              const Schedule schedule =
                  build_schedule({Mask::causal(n), layout, shapes, direction, {}, scheme});
              for (int rank = 0; rank < ranks; ++rank) {
                std::int64_t wanted = 0;
                std::vector<int> runs = runs_of(rank);
                if (direction == Direction::backward) {
                  for (int& run : runs) run = last - run;
                  std::ranges::sort(runs);
                }
                if (scheme.name == "lasp2") {
                  // All runs before its last one but its own; each but the chain's first with T.
                  for (int run = 0; run < runs.back(); ++run) {
                    if (std::ranges::count(runs, run) == 0) wanted += m + (run > 0 ? t : 0);
                  }
                } else if (scheme.name == "exscan") {
                  const auto own = [&](int run) { return std::ranges::count(runs, run) != 0; };
                  for (const int run : runs) {
                    if (run > 0 && !own(run - 1)) wanted += m;
                    for (int d = 1; d <= run && run < last; d *= 2) {
                      if (d + 1 <= last && !own(run - d)) wanted += m + (run - d >= d ? t : 0);
                    }
                  }
                } else {
                  for (const int run : runs) wanted += run > 0 ? m : 0;
                }
                EXPECT_EQ(received(schedule, rank), wanted)
                    << scheme.text() << " " << kind << " " << name(direction) << " over "
                    << name(kind_of_layout) << " P=" << ranks << " n=" << n << " rank " << rank;
              }
            }
          }
        }
      }
    }
  }
}

TEST(LinearSchemes, SendWhatTheirSchedulesCount) {
  for (const int ranks : {2, 3, 5, 8}) {
    std::vector<LinearProblem> problems;
    for (const char* kind : attention::recurrence_kinds())
      problems.push_back(linear_problem(kind, {2 * 67, 4, 2, 8, 6}, 2, {0, 21, 22, 50}));
    std::vector<LinearJob> jobs;
    for (const LinearProblem& problem : problems) add_jobs(problem, ranks, jobs);
    const auto answers = test::run_linear_jobs(jobs, ranks);
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      const LinearProblem& p = *jobs[j].problem;
      Shapes shapes{4, 2, 8, 6};
      shapes.linear = p.call();
      std::vector<std::map<int, std::int64_t>> counted(static_cast<std::size_t>(ranks));
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        const Schedule schedule =
            build_schedule({p.masks(), jobs[j].layout, shapes, direction, {}, jobs[j].scheme});
        for (const Program& program : schedule.programs) {
          for (const auto& [peer, bytes] : count(program).sent_to)
            counted[static_cast<std::size_t>(program.rank)][peer] += bytes;
        }
      }
      for (std::size_t rank = 0; rank < counted.size(); ++rank)
        EXPECT_EQ(answers[j].sent[rank], counted[rank]) << show(jobs[j]) << " rank " << rank;
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel
