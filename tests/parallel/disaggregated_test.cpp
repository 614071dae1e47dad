// The scheme `disaggregated`: answers under every mode of servers, bits that depend on tasks alone,
// what is sent, and what is kept.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "parallel/schemes/disaggregated.h"
#include "parallel/verifier/verifier.h"
#include "tests/support/dealt_tasks.h"
#include "tests/support/expect_error.h"
#include "tests/support/scheme_cases.h"
#include "tests/support/spread_attention.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using runtime::DType;
using test::dealt;
using test::Problem;
using test::SpreadJob;

using Tokens = std::vector<std::int64_t>;

/// Documents with nothing in them, of one row, of primes, and one that is most of the batch.
Mask nasty_documents() { return Mask::documents(Tokens{0, 0, 1, 1, 8, 135, 136, 136, 649, 660}); }

/// Homes, and servers behind them.
struct Where {
  ServerMode mode;
  int homes, servers;
};

SpreadJob job_of(const Problem& problem, LayoutKind kind, const Where& where,
                 const std::string& scheme) {
  Layout layout = Layout::make(kind, problem.masks, 1, where.homes);
  if (where.mode == ServerMode::dedicated) layout = layout.with_empty_ranks(where.servers);
  return {&problem, std::move(layout), parse_scheme(scheme), {where.mode, where.servers}};
}

const Where kWheres[] = {
    {ServerMode::in_place, 1, 0},  {ServerMode::in_place, 2, 0},  {ServerMode::in_place, 3, 0},
    {ServerMode::in_place, 5, 0},  {ServerMode::in_place, 7, 0},  {ServerMode::in_place, 8, 0},
    {ServerMode::dedicated, 1, 1}, {ServerMode::dedicated, 2, 1}, {ServerMode::dedicated, 3, 2},
    {ServerMode::dedicated, 4, 3}, {ServerMode::external, 1, 1},  {ServerMode::external, 3, 2}};

TEST(Disaggregated, IsRightWhereverServersAre) {
  std::vector<std::unique_ptr<Problem>> problems;
  const test::ProblemSizes mha{4, 4, 8, 12}, gqa{8, 2, 8, 8}, mqa{8, 1, 16, 8};
  problems.push_back(std::make_unique<Problem>("documents", nasty_documents(), gqa));
  problems.push_back(std::make_unique<Problem>("causal", Mask::causal(509), mha));
  problems.push_back(
      std::make_unique<Problem>("documents of one row", Mask::documents(Tokens{0, 1, 2, 3}), mqa));
  problems.push_back(std::make_unique<Problem>("documents", nasty_documents(),
                                               test::ProblemSizes{4, 2, 8, 8, true}));
  for (const Where& where : kWheres) {
    std::vector<SpreadJob> jobs;
    for (const auto& problem : problems) {
      for (const LayoutKind kind : {LayoutKind::packed, LayoutKind::contiguous, LayoutKind::zigzag,
                                    LayoutKind::document_zigzag, LayoutKind::balanced}) {
        for (const char* scheme : {"disaggregated", "disaggregated(tolerance=0, resend=false)",
                                   "disaggregated(tolerance=0.5)"})
          jobs.push_back(job_of(*problem, kind, where, scheme));
      }
    }
    test::SpreadOptions options;
    if (where.mode == ServerMode::external)
      options.transport = test::servers_in_process(where.servers);
    const auto reports = test::run_jobs(jobs, jobs[0].layout.ranks(), options);
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      SCOPED_TRACE(runtime::concat(name(where.mode), " ", where.homes, "+", where.servers));
      test::expect_right(jobs[j], reports[j]);
      test::expect_bytes_as_counted(jobs[j], reports[j]);
    }
  }
}

TEST(Disaggregated, RepeatsBitForBitWithAnyNumberOfThreads) {
  const Problem problem("documents", nasty_documents(), test::ProblemSizes{8, 2, 16, 16});
  const std::vector jobs{
      job_of(problem, LayoutKind::packed, {ServerMode::in_place, 3, 0}, "disaggregated"),
      job_of(problem, LayoutKind::zigzag, {ServerMode::dedicated, 2, 1}, "disaggregated")};
  std::vector<std::vector<std::uint64_t>> digests;
  for (const int threads : {1, 1, 2, 3}) {
    for (const auto& report : test::run_jobs(jobs, 3, {.threads = threads}))
      digests.push_back(report.digests());
  }
  for (std::size_t i = jobs.size(); i < digests.size(); ++i)
    EXPECT_EQ(digests[i], digests[i - jobs.size()]);
}

/// The same tasks, done by others.
TaskPlan served_by(TaskPlan plan, const std::function<int(std::size_t, const Task&)>& server) {
  for (std::size_t i = 0; i < plan.tasks.size(); ++i)
    plan.tasks[i].server = server(i, plan.tasks[i]);
  return plan;
}

TEST(Disaggregated, BitsDoNotDependOnWhoAttends) {
  constexpr int kRanks = 4;
  for (const bool resend : {true, false}) {
    for (const std::int64_t kv_heads : {4, 1}) {
      const Problem problem("documents", nasty_documents(), test::ProblemSizes{4, kv_heads, 8, 8});
      const SpreadJob job = job_of(
          problem, LayoutKind::packed, {ServerMode::in_place, kRanks, 0},
          resend ? "disaggregated(tolerance=0)" : "disaggregated(tolerance=0, resend=false)");
      const auto plans = [&](const auto& server) {
        std::array<TaskPlan, 2> both;
        for (const Direction direction : {Direction::forward, Direction::backward})
          both[static_cast<std::size_t>(direction)] =
              served_by(plan_of(test::scheme_inputs(job, direction)), server);
        return both;
      };
      const auto as_planned =
          dealt(job, plans([](std::size_t, const Task& t) { return t.server; }));
      std::mt19937 random(5);
      EXPECT_TRUE(as_planned ==
                  dealt(job, plans([](std::size_t, const Task& t) { return t.home; })));
      EXPECT_TRUE(as_planned == dealt(job, plans([](std::size_t, const Task&) { return 2; })));
      EXPECT_TRUE(as_planned == dealt(job, plans([](std::size_t i, const Task& t) {
                                        return (t.home + static_cast<int>(i) + 1) % kRanks;
                                      })));
      // Cut elsewhere, the gradients of keys are other sums: then bits may differ.
      const SpreadJob dedicated =
          job_of(problem, LayoutKind::packed, {ServerMode::dedicated, kRanks, 2},
                 resend ? "disaggregated" : "disaggregated(resend=false)");
      std::array<TaskPlan, 2> same = plans([](std::size_t, const Task& t) { return t.server; });
      for (TaskPlan& plan : same)
        plan = served_by(plan, [](std::size_t i, const Task&) { return static_cast<int>(i % 2); });
      EXPECT_TRUE(as_planned == dealt(dedicated, same));
    }
  }
}

TEST(Disaggregated, ServersKeepNothingWhereHomesResend) {
  const Problem problem("documents", nasty_documents(), test::ProblemSizes{4, 2, 8, 8});
  for (const bool resend : {true, false}) {
    const SpreadJob job = job_of(problem, LayoutKind::packed, {ServerMode::dedicated, 2, 1},
                                 resend ? "disaggregated" : "disaggregated(resend=false)");
    std::int64_t kept = 0;
    for (const Program& program : test::schedule_of(job, Direction::forward).programs) {
      for (const Slot& slot : program.slots)
        kept += slot.role == Role::saved ? slot_bytes(slot) : 0;
    }
    EXPECT_EQ(kept > 0, !resend);
  }
}

TEST(Disaggregated, VerifiesUpTo512Ranks) {
  std::mt19937 random(3);
  for (const auto& [homes, servers] : {std::pair(8, 0), {61, 3}, {512, 0}}) {
    Tokens offsets{0};
    while (offsets.back() < homes * 40)
      offsets.push_back(offsets.back() + 1 +
                        static_cast<std::int64_t>(random() % 3000 / (1 + random() % 50)));
    const attention::HeadMasks masks = Mask::documents(offsets);
    const Layout layout =
        Layout::make(LayoutKind::packed, masks, 1, homes).with_empty_ranks(servers);
    for (const char* scheme : {"disaggregated", "disaggregated(resend=false)"}) {
      std::vector<Schedule> both;
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        SchemeInputs inputs{masks,     layout, {2, 1, 8, 8, DType::float32},
                            direction, {},     parse_scheme(scheme)};
        if (servers > 0) inputs.servers = {ServerMode::dedicated, servers};
        both.push_back(build_schedule(inputs));
        const Verdict verdict = verify(both.back(), masks, layout);
        EXPECT_TRUE(verdict.ok()) << homes << " " << scheme << " " << name(direction) << ": "
                                  << verdict.message;
      }
      EXPECT_TRUE(verify_saved(both[0], both[1]).ok());
    }
  }
}

/// What each rank receives of each other's tokens in a program's transfers, token by token.
struct Received {
  std::map<std::pair<int, std::int64_t>, int> queries, keys;  // (rank, token) -> times
};

TEST(Disaggregated, SendsEveryRowOnceToWhereItIsNeededAndNowhereElse) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 40; ++trial) {
    Tokens offsets{0};
    for (int d = 0; d < 9; ++d)
      offsets.push_back(offsets.back() +
                        static_cast<std::int64_t>(random() % 700) * (random() % 3 != 0));
    if (offsets.back() == 0) continue;
    const attention::HeadMasks masks = Mask::documents(offsets);
    const int homes = 1 + static_cast<int>(random() % 7);
    const Layout layout = Layout::make(LayoutKind::packed, masks, 1, homes);
    const SchemeInputs inputs{masks,
                              layout,
                              {2, 1, 8, 8, DType::float32},
                              Direction::forward,
                              {},
                              parse_scheme("disaggregated")};
    const TaskPlan plan = plan_of(inputs);
    std::vector<int> home(static_cast<std::size_t>(layout.tokens()));
    for (int rank = 0; rank < homes; ++rank) {
      for (const std::int64_t token : layout.tokens_of(rank))
        home[static_cast<std::size_t>(token)] = rank;
    }
    // Rows that a rank must be sent, from the plan and the tokens' homes alone.
    std::map<std::pair<int, int>, std::int64_t> bytes;  // (from, to)
    std::set<std::pair<int, std::int64_t>> keys;
    for (const Task& task : plan.tasks) {
      if (task.server != task.home) bytes[{task.home, task.server}] += task.rows() * 2 * 8 * 4;
      if (task.server != task.home)
        bytes[{task.server, task.home}] += task.rows() * 2 * (8 + 2) * 4;
      for (std::int64_t token = task.document; token < task.end; ++token) {
        const int from = home[static_cast<std::size_t>(token)];
        if (from != task.server && keys.emplace(task.server, token).second)
          bytes[{from, task.server}] += 1 * (8 + 8) * 4;
      }
    }
    const auto generate = prepare(inputs);
    std::map<std::pair<int, int>, std::int64_t> counted;
    for (int rank = 0; rank < homes; ++rank) {
      const Program program = generate(rank);
      for (const Step& step : program.steps) {
        if (const auto* transfer = std::get_if<Transfer>(&step.operation)) {
          for (const Message& message : transfer->sends) EXPECT_NE(message.peer, rank);
        }
      }
      for (const auto& [peer, sent] : count(program).sent_to) {
        if (sent > 0) counted[{rank, peer}] = sent;
      }
    }
    EXPECT_EQ(counted, bytes);
    // The planner says the same before any program is made.
    const Tokens documents = attention::independent_parts(masks);
    const PlanBytes predicted = plan_bytes(plan, {documents, layout, {}, 0.05, {64, 64, 80, 0}});
    std::map<std::pair<int, int>, std::int64_t> said;
    for (const auto* exchange : {&predicted.dispatched, &predicted.returned}) {
      for (const PairBytes& pair : *exchange) said[{pair.from, pair.to}] += pair.bytes;
    }
    EXPECT_EQ(said, bytes);
  }
}

TEST(Disaggregated, BackwardBytesAreAsPlanned) {
  for (const Where& where : kWheres) {
    if (where.mode == ServerMode::external) continue;
    const Problem problem("documents", nasty_documents(), test::ProblemSizes{4, 2, 8, 8});
    const SpreadJob job = job_of(problem, LayoutKind::packed, where, "disaggregated(tolerance=0)");
    const SchemeInputs inputs = test::scheme_inputs(job, Direction::backward);
    const auto generate = prepare(inputs);
    std::map<std::pair<int, int>, std::int64_t> counted, said;
    for (int rank = 0; rank < job.layout.ranks(); ++rank) {
      for (const auto& [peer, sent] : count(generate(rank)).sent_to) {
        if (sent > 0) counted[{rank, peer}] = sent;
      }
    }
    const Tokens documents = attention::independent_parts(problem.masks);
    const std::int64_t q = 4 * 8, kv = 2 * 8;
    const PlanBytes bytes =
        plan_bytes(plan_of(inputs), {documents,
                                     job.layout,
                                     job.servers,
                                     0,
                                     {4 * (2 * q + 3 * 4), 4 * 2 * kv, 4 * q, 4 * 2 * kv}});
    for (const auto* exchange : {&bytes.dispatched, &bytes.returned}) {
      for (const PairBytes& pair : *exchange) said[{pair.from, pair.to}] += pair.bytes;
    }
    EXPECT_EQ(said, counted) << name(where.mode) << " " << where.homes << "+" << where.servers;
  }
}

TEST(Disaggregated, RefusesWhatIsNoTask) {
  const Layout zigzag(LayoutKind::zigzag, 64, 1, 4);
  const Shapes shapes{4, 2, 8, 8, DType::float32};
  const auto refuse_it = [&](const attention::HeadMasks& masks, const Layout& layout,
                             const std::string& why) {
    test::expect_error(runtime::ExitCode::config, why, [&] {
      prepare({masks, layout, shapes, Direction::forward, {}, parse_scheme("disaggregated")});
    });
  };
  refuse_it(Mask::causal(64).within(-7, 0), zigzag, "without a window");
  refuse_it(Mask::full(64), zigzag, "must be causal");
  refuse_it(Mask::causal(64), Layout(LayoutKind::striped, 64, 1, 4), "a striped rank has none");
  test::expect_error(runtime::ExitCode::config, "tolerance",
                     [] { parse_scheme("disaggregated(tolerance=-1)"); });
}

}  // namespace
}  // namespace longhaul::parallel
