// Plans of attention tasks, against a count that knows tokens one by one and no intervals.
#include "parallel/disaggregation/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <map>
#include <numeric>
#include <random>

#include "runtime/error.h"
#include "tests/support/expect_error.h"

namespace longhaul::parallel {
namespace {

using attention::Mask;
using runtime::ExitCode;
using enum ServerMode;

/// Owns what TaskInputs refers to.
struct Case {
  std::vector<std::int64_t> documents;
  Layout layout;
  AttentionServers servers = {};
  double tolerance = 0.05;
  RowBytes bytes = {8192, 4096, 8320, 0};

  TaskInputs inputs() const { return {documents, layout, servers, tolerance, bytes}; }
  int places() const { return layout.ranks() + (servers.mode == external ? servers.count : 0); }
  int place(int server) const {
    if (servers.mode == in_place) return server;
    return servers.mode == dedicated ? layout.ranks() - servers.count + server
                                     : layout.ranks() + server;
  }
};

Case make_case(const std::vector<std::int64_t>& lengths, int ranks,
               LayoutKind kind = LayoutKind::packed, AttentionServers servers = {}) {
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
  const attention::HeadMasks masks = Mask::documents(offsets);
  Layout layout = Layout::make(kind, masks, 1, ranks);
  if (servers.mode == dedicated) layout = layout.with_empty_ranks(servers.count);
  return {independent_parts(masks), layout, std::move(servers)};
}

/// What every token is, and what the plan makes of it.
struct Tokens {
  std::vector<std::int64_t> document;  ///< first token
  std::vector<std::int64_t> run;       ///< where the home's run begins, in the document
  std::vector<int> home, task;
};

Tokens read_tokens(const Case& on, const TaskPlan& plan) {
  const auto count = static_cast<std::size_t>(on.layout.tokens());
  Tokens tokens{std::vector<std::int64_t>(count), std::vector<std::int64_t>(count),
                std::vector<int>(count, -1), std::vector<int>(count, -1)};
  for (std::size_t d = 0; d + 1 < on.documents.size(); ++d) {
    for (std::int64_t t = on.documents[d]; t < on.documents[d + 1]; ++t)
      tokens.document[static_cast<std::size_t>(t)] = on.documents[d];
  }
  for (int rank = 0; rank < on.layout.ranks(); ++rank) {
    for (const std::int64_t t : on.layout.tokens_of(rank))
      tokens.home[static_cast<std::size_t>(t)] = rank;
  }
  for (std::size_t t = 0; t < count; ++t) {
    const bool goes_on = t > 0 && tokens.home[t] == tokens.home[t - 1] &&
                         tokens.document[t] == tokens.document[t - 1];
    tokens.run[t] = goes_on ? tokens.run[t - 1] : static_cast<std::int64_t>(t);
  }
  for (std::size_t i = 0; i < plan.tasks.size(); ++i) {
    for (std::int64_t t = plan.tasks[i].begin; t < plan.tasks[i].end; ++t) {
      EXPECT_EQ(tokens.task.at(static_cast<std::size_t>(t)), -1) << "token " << t << " twice";
      tokens.task[static_cast<std::size_t>(t)] = static_cast<int>(i);
    }
  }
  EXPECT_EQ(std::ranges::count(tokens.task, -1), 0) << "tokens without a task";
  return tokens;
}

std::int64_t largest_shard(const Tokens& tokens) {
  std::int64_t most = 0, area = 0;
  for (std::size_t t = 0; t < tokens.run.size(); ++t) {
    if ((static_cast<std::int64_t>(t) - tokens.run[t]) % kShardRows == 0) area = 0;
    area += static_cast<std::int64_t>(t) - tokens.document[t] + 1;
    most = std::max(most, area);
  }
  return most;
}

void expect_tasks(const Case& on, const TaskPlan& plan, const Tokens& tokens) {
  const int servers = server_count(on.layout, on.servers);
  std::vector<std::int64_t> areas(static_cast<std::size_t>(servers), 0);
  const Task* before = nullptr;
  for (const Task& task : plan.tasks) {
    ASSERT_LT(task.begin, task.end);
    ASSERT_TRUE(0 <= task.server && task.server < servers);
    for (std::int64_t t = task.begin; t < task.end; ++t) {
      const auto i = static_cast<std::size_t>(t);
      ASSERT_EQ(tokens.home[i], task.home);
      ASSERT_EQ(tokens.document[i], task.document);
      ASSERT_EQ(tokens.run[i], tokens.run[static_cast<std::size_t>(task.begin)]);
      areas[static_cast<std::size_t>(task.server)] += t - task.document + 1;
    }
    const std::int64_t run = tokens.run[static_cast<std::size_t>(task.begin)];
    ASSERT_EQ((task.begin - run) % kShardRows, 0);
    const auto next = static_cast<std::size_t>(task.end);
    if (next < tokens.run.size() && tokens.run[next] == run) {
      ASSERT_EQ((task.end - run) % kShardRows, 0);
    }
    if (before != nullptr) {
      ASSERT_EQ(before->end, task.begin);
      const bool same_run = tokens.run[static_cast<std::size_t>(before->begin)] == run;
      ASSERT_FALSE(same_run && before->server == task.server) << "two tasks that are one";
    }
    before = &task;
  }
  EXPECT_EQ(plan.areas, areas);

  const auto speed = [&](std::size_t server) {
    return on.servers.speeds.empty() ? 1.0 : static_cast<double>(on.servers.speeds[server]);
  };
  double most = 0, area = 0, speeds = 0;
  for (std::size_t s = 0; s < areas.size(); ++s) {
    most = std::max(most, static_cast<double>(areas[s]) / speed(s));
    area += static_cast<double>(areas[s]);
    speeds += speed(s);
  }
  if (area > 0) {
    EXPECT_NEAR(plan.imbalance, most * speeds / area, 1e-12 * plan.imbalance);
  } else {
    EXPECT_EQ(plan.imbalance, 1);
  }
  EXPECT_LE(plan.reachable, plan.imbalance * (1 + 1e-12));
  const bool limited = on.servers.buffer_bytes != std::numeric_limits<std::int64_t>::max();
  if (limited) {
    Case unlimited = on;
    unlimited.servers.buffer_bytes = std::numeric_limits<std::int64_t>::max();
    const double as_good = std::max(1 + on.tolerance, plan_tasks(unlimited.inputs()).imbalance);
    EXPECT_LE(plan.imbalance, as_good * (1 + 1e-12));
  }
  const bool permits = static_cast<double>(largest_shard(tokens)) * servers <=
                       std::floor(on.tolerance * (1 << 20)) / (1 << 20) * area;
  if (permits && on.servers.speeds.empty() && !limited) {
    EXPECT_LE(plan.imbalance, 1 + on.tolerance);
  }
}

using Pairs = std::map<std::pair<int, int>, std::int64_t>;

void add(Pairs& pairs, int from, int to, std::int64_t bytes) {
  if (from != to && bytes != 0) pairs[{from, to}] += bytes;
}

/// Bytes by pair, key by key.
void count_bytes(const Case& on, const TaskPlan& plan, const Tokens& tokens, Pairs& dispatched,
                 Pairs& returned) {
  std::vector<std::vector<bool>> has(static_cast<std::size_t>(on.layout.ranks()),
                                     std::vector<bool>(tokens.home.size(), false));
  for (const Task& task : plan.tasks) {
    const int place = on.place(task.server);
    const int keeper = on.servers.mode == external ? task.home : place;
    add(dispatched, task.home, place, on.bytes.query * (task.end - task.begin));
    add(returned, place, task.home, on.bytes.result * (task.end - task.begin));
    for (std::int64_t key = task.document; key < task.end; ++key) {
      const auto k = static_cast<std::size_t>(key);
      if (!has[static_cast<std::size_t>(keeper)][k])
        add(dispatched, tokens.home[k], keeper, on.bytes.key);
      has[static_cast<std::size_t>(keeper)][k] = true;
      add(returned, keeper, tokens.home[k], on.bytes.key_gradient);
      if (on.servers.mode == external) {
        add(dispatched, task.home, place, on.bytes.key);
        add(returned, place, task.home, on.bytes.key_gradient);
      }
    }
  }
}

void expect_pairs(const std::vector<PairBytes>& pairs, const Pairs& expected) {
  std::vector<PairBytes> listed;
  for (const auto& [pair, bytes] : expected) listed.push_back({pair.first, pair.second, bytes});
  EXPECT_EQ(pairs, listed);
}

std::int64_t most_received(const Pairs& pairs) {
  std::map<int, std::int64_t> received;
  std::int64_t most = 0;
  for (const auto& [pair, bytes] : pairs) most = std::max(most, received[pair.second] += bytes);
  return most;
}

/// The plan, every property of it checked.
TaskPlan expect_plan(const Case& on) {
  const TaskInputs inputs = on.inputs();
  TaskPlan plan = plan_tasks(inputs);
  const Tokens tokens = read_tokens(on, plan);
  expect_tasks(on, plan, tokens);
  Pairs dispatched, returned;
  count_bytes(on, plan, tokens, dispatched, returned);
  const PlanBytes bytes = plan_bytes(plan, inputs);
  expect_pairs(bytes.dispatched, dispatched);
  expect_pairs(bytes.returned, returned);
  EXPECT_LE(most_received(dispatched), on.servers.buffer_bytes);
  EXPECT_LE(most_received(returned), on.servers.buffer_bytes);
  std::map<int, std::int64_t> received;
  std::int64_t total = 0, peak = 0;
  for (const Pairs* pairs : {&dispatched, &returned}) {
    for (const auto& [pair, sent] : *pairs) {
      total += sent;
      peak = std::max(peak, received[pair.second] += sent);
    }
  }
  EXPECT_EQ(bytes.total(), total);
  EXPECT_EQ(bytes.peak_received(), peak);
  return plan;
}

Case random_case(std::mt19937_64& random) {
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  const int ranks = static_cast<int>(std::array{1, 2, 3, 5, 7, 8, 13}[draw(0, 6)]);
  const std::int64_t nasty[] = {0, 1, 1, 2, 7, 61, 127, 128, 129, 255, 256, 383, 769, 1531};
  std::vector<std::int64_t> lengths;
  for (std::int64_t left = draw(0, 4) == 0 ? draw(0, 300) : draw(0, 5000); left > 0;) {
    const std::int64_t length =
        std::min(left, draw(0, 9) == 0 ? draw(1, 4000) : nasty[draw(0, std::ssize(nasty) - 1)]);
    lengths.push_back(length);
    left -= length;
  }
  AttentionServers servers;
  servers.mode = std::array{in_place, in_place, dedicated, external}[draw(0, 3)];
  if (servers.mode != in_place) servers.count = static_cast<int>(draw(1, 9));
  const LayoutKind kinds[] = {LayoutKind::packed,          LayoutKind::packed,
                              LayoutKind::contiguous,      LayoutKind::zigzag,
                              LayoutKind::document_zigzag, LayoutKind::balanced};
  Case on = make_case(lengths, ranks, kinds[draw(0, 5)], servers);
  if (servers.mode == in_place && draw(0, 3) == 0)
    on.layout = on.layout.with_empty_ranks(static_cast<int>(draw(1, 5)));
  if (draw(0, 3) == 0) {
    for (int s = 0; s < server_count(on.layout, on.servers); ++s)
      on.servers.speeds.push_back(draw(1, 5));
  }
  on.tolerance = std::array{0.0, 0.05, 0.05, 0.1, 0.5}[draw(0, 4)];
  if (draw(0, 1) == 0) on.bytes = {draw(0, 9), draw(0, 9), draw(0, 9), draw(0, 9)};
  return on;
}

#ifdef __SANITIZE_ADDRESS__
constexpr int kMixes = 1000;  // ten times as slow there
#else
constexpr int kMixes = 10000;
#endif

TEST(Tasks, RandomMixes) {
  std::mt19937_64 random(11);
  for (int i = 0; i < kMixes; ++i) {
    SCOPED_TRACE(runtime::concat("case ", i));
    const Case on = random_case(random);
    const TaskPlan plan = expect_plan(on);
    const TaskPlan again = plan_tasks(on.inputs());
    EXPECT_EQ(plan.tasks, again.tasks);
    EXPECT_EQ(plan.digest, again.digest);
    if (HasFailure()) return;
  }
}

/// Most that a place receives in one exchange.
std::int64_t peak_of_exchanges(const PlanBytes& bytes) {
  std::int64_t most = 0;
  for (const std::vector<PairBytes>* pairs : {&bytes.dispatched, &bytes.returned}) {
    Pairs sums;
    for (const PairBytes& pair : *pairs) sums[{pair.from, pair.to}] = pair.bytes;
    most = std::max(most, most_received(sums));
  }
  return most;
}

TEST(Tasks, RandomMixesUnderLimits) {
  std::mt19937_64 random(12);
  int planned = 0, refused = 0;
  for (int i = 0; i < kMixes / 4; ++i) {
    SCOPED_TRACE(runtime::concat("case ", i));
    Case on = random_case(random);
    const TaskPlan unlimited = plan_tasks(on.inputs());
    const std::int64_t peak = peak_of_exchanges(plan_bytes(unlimited, on.inputs()));
    on.servers.buffer_bytes = peak;
    EXPECT_EQ(plan_tasks(on.inputs()).tasks, unlimited.tasks);
    const std::int64_t both = plan_bytes(unlimited, on.inputs()).peak_received();
    on.servers.buffer_bytes = std::uniform_int_distribution<std::int64_t>(both / 2, both)(random);
    try {
      expect_plan(on);
      ++planned;
    } catch (const runtime::Error& error) {
      ASSERT_EQ(error.code(), ExitCode::config) << error.what();
      const bool unpermitted = unlimited.imbalance > 1 + on.tolerance;
      const bool told = std::string(error.what()).find("shards do not permit") != std::string::npos;
      EXPECT_TRUE(told || !unpermitted) << error.what();
      ++refused;
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(planned, kMixes / 25);
  EXPECT_GT(refused, kMixes / 25);
}

}  // namespace
}  // namespace longhaul::parallel
