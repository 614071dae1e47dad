// plan_tasks(): what it refuses, and what it says of a plan.

#include <xxhash.h>

#include <algorithm>
#include <bit>
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

[[noreturn]] void refuse(const TaskInputs& inputs, const Overflow& overflow,
                         const std::string& why) {
  runtime::fail(ExitCode::config, place_name(inputs, overflow.place), " would receive ",
                overflow.bytes, " bytes in ", overflow.dispatch ? "the dispatch" : "the return",
                " of an attention call", why, "; attention_servers.buffer_bytes allows ",
                inputs.servers.buffer_bytes, ": raise it, use more ranks, or a larger tolerance");
}

/// Balanced, and within the limit of buffers.
Assignment assignment(const TaskInputs& inputs) {
  std::vector<Segment> segments = segments_of(inputs);
  if (inputs.servers.mode != ServerMode::in_place) deal(segments, inputs);
  // Homes receive results and servers keys: where one overflows, moves of fewer rows, or of fewer
  // keys, may do.
  const RowBytes& bytes = inputs.bytes;
  const RowBytes few_rows{8 * bytes.query, bytes.key, 8 * bytes.result, bytes.key_gradient};
  const RowBytes few_keys{bytes.query, 8 * bytes.key, bytes.result, 8 * bytes.key_gradient};
  std::string why;
  std::optional<Overflow> first;
  for (const RowBytes& prices : {bytes, few_rows, few_keys}) {
    Assignment work(inputs, segments, prices);
    Balancer balancer(inputs, prices, work);
    balancer.relieve();
    balancer.balance();
    const std::optional<Overflow> overflow = work.overflow();
    const auto& blocked = balancer.blocked();
    if (!overflow && !blocked) return work;
    if (first) continue;
    first = overflow ? overflow : blocked->overflow;
    if (!overflow) {
      why = concat(" if ", place_name(inputs, work.place(blocked->server)),
                   " were to be within the tolerance of ", inputs.tolerance);
    }
  }
  refuse(inputs, *first, why);
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
