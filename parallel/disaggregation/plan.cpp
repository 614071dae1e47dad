// plan_tasks(): what it refuses, and what it says of a plan.

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <queue>

#include "parallel/disaggregation/balancer.h"
#include "runtime/counted.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;
using runtime::ExitCode;

constexpr std::int64_t kFastest = std::int64_t{1} << 44;  // products with areas fit 128 bits

void check(const TaskInputs& inputs) {
  const AttentionServers& servers = inputs.servers;
  const int count = server_count(inputs.layout, servers);
  LONGHAUL_CHECK(count >= 1, count, " attention servers");
  LONGHAUL_CHECK(inputs.tolerance >= 0, "tolerance ", inputs.tolerance, " of attention servers");
  LONGHAUL_CHECK(servers.buffer_bytes >= 0, "buffers of ", servers.buffer_bytes, " bytes");
  LONGHAUL_CHECK(!inputs.documents.empty() && inputs.documents.front() == 0 &&
                     inputs.documents.back() == inputs.layout.tokens(),
                 "documents of a layout of ", inputs.layout.tokens(), " tokens");
  LONGHAUL_CHECK(servers.speeds.empty() || std::ssize(servers.speeds) == count,
                 servers.speeds.size(), " speeds of ", count, " attention servers");
  for (const std::int64_t speed : servers.speeds)
    LONGHAUL_CHECK(speed >= 1 && speed <= kFastest, "speed ", speed, " of an attention server");
  if (servers.mode != ServerMode::dedicated) return;
  LONGHAUL_CHECK(count < inputs.layout.ranks(), count, " dedicated servers of ",
                 inputs.layout.ranks(), " ranks");
  for (int server = 0; server < count; ++server) {
    const int rank = server_rank(inputs.layout, servers, server);
    LONGHAUL_CHECK(inputs.layout.rows(rank) == 0, "dedicated attention server ", server, ", rank ",
                   rank, ", holds ", inputs.layout.rows(rank), " rows");
  }
}

/// Areas of the so many largest shards, falling.
std::vector<std::int64_t> largest_shards(std::span<const Segment> segments, std::size_t count) {
  struct Shard {
    std::int64_t area = 0, begin = 0;
    const Segment* segment = nullptr;
    bool operator<(const Shard& other) const { return area < other.area; }
  };
  const auto shard = [](const Segment& segment, std::int64_t end) {
    const std::int64_t begin = segment.cut_below(end - 1);
    return Shard{causal_area(begin, end), begin, &segment};
  };
  // Areas of a segment's whole shards rise; its last may be short, and stands beside the one
  // before.
  std::priority_queue<Shard> queue;
  for (const Segment& segment : segments) {
    const Shard last = shard(segment, segment.end);
    queue.push(last);
    if (last.begin > segment.begin) queue.push(shard(segment, last.begin));
  }
  std::vector<std::int64_t> areas;
  while (areas.size() < count && !queue.empty()) {
    const Shard top = queue.top();
    queue.pop();
    areas.push_back(top.area);
    const bool whole_follows = top.begin + kShardRows < top.segment->end;
    if (whole_follows && top.begin > top.segment->begin) queue.push(shard(*top.segment, top.begin));
  }
  return areas;
}

std::string place_name(const TaskInputs& inputs, int place) {
  const int ranks = inputs.layout.ranks();
  return place < ranks ? concat("rank ", place) : concat("attention server ", place - ranks);
}

/// Of the searches under limits: steps of all beside those of the search without, for each server
/// and segment, and servers that the first one tries.
constexpr std::int64_t kSpareSteps = 256;
constexpr std::size_t kFewTakers = 16;

struct Planned {
  Assignment work;
  bool within_tolerance = false;
  Load load = {};  ///< the largest
  std::int64_t steps = 0;
};

Planned balanced(const TaskInputs& inputs, std::vector<Segment> segments, const RowBytes& prices,
                 const Balancer::Bounds& bounds) {
  Planned planned{Assignment(inputs, std::move(segments), prices)};
  Balancer balancer(inputs, prices, planned.work, bounds);
  balancer.relieve();
  balancer.balance();
  planned.within_tolerance = balancer.within_tolerance();
  planned.load = balancer.largest_load();
  planned.steps = balancer.steps();
  return planned;
}

[[noreturn]] void refuse(const TaskInputs& inputs, const Planned& unlimited) {
  const Received most = unlimited.work.most_received();
  const std::string balance =
      unlimited.within_tolerance
          ? concat("within the tolerance of ", inputs.tolerance)
          : concat("as balanced as without the limit (shards do not permit the tolerance of ",
                   inputs.tolerance, ")");
  runtime::fail(ExitCode::config, place_name(inputs, most.place), " would receive ", most.bytes,
                " bytes in ", most.dispatch ? "the dispatch" : "the return",
                " of an attention call; attention_servers.buffer_bytes allows ",
                inputs.servers.buffer_bytes, ", and no plan that keeps it was found that is ",
                balance, ": raise it to as much, use more ranks, or a larger tolerance");
}

/// Balanced, and within the limit of buffers.
Assignment assignment(const TaskInputs& inputs) {
  TaskInputs unlimited = inputs;
  unlimited.servers.buffer_bytes = std::numeric_limits<std::int64_t>::max();
  std::vector<Segment> segments = segments_of(inputs), dealt = segments;
  const bool away = inputs.servers.mode != ServerMode::in_place;
  if (away) deal(dealt, unlimited);
  Planned best = balanced(unlimited, std::move(dealt), inputs.bytes, {});
  if (best.work.most_received().bytes <= inputs.servers.buffer_bytes) return std::move(best.work);

  if (away) deal(segments, inputs);
  // Homes receive results and servers keys: where one overflows, moves of fewer rows, or of fewer
  // keys, may do.
  const RowBytes& bytes = inputs.bytes;
  const RowBytes few_rows{8 * bytes.query, bytes.key, 8 * bytes.result, bytes.key_gradient};
  const RowBytes few_keys{bytes.query, 8 * bytes.key, bytes.result, 8 * bytes.key_gradient};
  const auto servers = static_cast<std::size_t>(best.work.servers());
  std::int64_t left = best.steps + kSpareSteps * (std::ssize(segments) + best.work.servers());
  struct Attempt {
    const RowBytes& prices;
    std::size_t takers;
    std::int64_t share;  // one of so many of the steps that are left
  };
  for (const auto& [prices, takers, share] : {Attempt{bytes, kFewTakers, 2},
                                              {bytes, servers, 1},
                                              {few_rows, servers, 1},
                                              {few_keys, servers, 1}}) {
    Planned limited = balanced(inputs, segments, prices, {left / share, best.load, takers});
    const bool fits = limited.work.most_received().bytes <= inputs.servers.buffer_bytes;
    const bool as_balanced =
        !less_ratio(best.load.area, best.load.speed, limited.load.area, limited.load.speed);
    if (fits && (limited.within_tolerance || as_balanced)) return std::move(limited.work);
    left = std::max<std::int64_t>(0, left - limited.steps);
  }
  refuse(inputs, best);
}

/// Areas, the imbalance, and what is reachable.
void state_loads(TaskPlan& plan, const TaskInputs& inputs, const Assignment& work) {
  const std::vector<std::int64_t> speeds = speeds_of(inputs);
  double area = 0, speed = 0, most = 0;
  for (int server = 0; server < work.servers(); ++server) {
    const auto its_speed = static_cast<double>(speeds[static_cast<std::size_t>(server)]);
    plan.areas.push_back(work.load(server));
    area += static_cast<double>(work.load(server));
    speed += its_speed;
    most = std::max(most, static_cast<double>(work.load(server)) / its_speed);
  }
  if (area == 0) return;
  plan.imbalance = most / (area / speed);
  // One server does the largest shard, and one does two of any n + 1: no sooner than the fastest.
  const auto fastest = static_cast<double>(std::ranges::max(speeds));
  const std::vector<std::int64_t> largest = largest_shards(work.segments(), speeds.size() + 1);
  double least = static_cast<double>(largest[0]);
  if (largest.size() > speeds.size()) {
    least = std::max(least, static_cast<double>(largest[speeds.size()]) +
                                static_cast<double>(largest[speeds.size() - 1]));
  }
  plan.reachable = std::max(1.0, least / fastest / (area / speed));
}

}  // namespace

TaskPlan plan_tasks(const TaskInputs& inputs) {
  check(inputs);
  const Assignment work = assignment(inputs);
  TaskPlan plan;
  for (const Segment& segment : work.segments()) {
    const std::int64_t start = inputs.documents[static_cast<std::size_t>(segment.document)];
    for (const Piece& piece : segment.pieces) {
      plan.tasks.push_back(
          {start, start + piece.begin, start + piece.end, segment.home, piece.server});
    }
  }
  static_assert(sizeof(Task) == 3 * sizeof(std::int64_t) + 2 * sizeof(int) &&
                std::endian::native == std::endian::little);
  plan.digest = XXH64(plan.tasks.data(), plan.tasks.size() * sizeof(Task), 0);

  state_loads(plan, inputs, work);
  return plan;
}

}  // namespace longhaul::parallel
