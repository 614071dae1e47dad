#pragma once
// Core attention as tasks: what the scheme `disaggregated` moves between ranks. A task is a shard
// of the queries of one document with all keys that they see; it holds no weights and no state, so
// any server can do it. Source: DistCA (Zhuang et al. 2025, arXiv 2510.18121), section 4.1.

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "parallel/layout.h"

namespace longhaul::parallel {

/// Where attention servers are.
enum class ServerMode : unsigned char {
  in_place,   ///< every rank of the axis is one, beside its own work
  dedicated,  ///< the last ranks of the axis are: they hold no rows
  external    ///< processes outside of the job: a rank hands its own tasks to them
};
const char* name(ServerMode mode);

/// Who attends for the ranks of an axis; the same on all of them.
struct AttentionServers {
  ServerMode mode = ServerMode::in_place;
  int count = 0;  ///< `dedicated` and `external`: how many; `in_place`: not read
  /// Work a second of each server beside the others', in any unit; empty: all alike. Not below 1.
  std::vector<std::int64_t> speeds = {};
  /// Most bytes that a rank, or an external server, may receive in one exchange of one call.
  std::int64_t buffer_bytes = std::numeric_limits<std::int64_t>::max();
  bool operator==(const AttentionServers&) const = default;
};

/// Queries [begin, end) of the document that begins at token `document`, over its keys
/// [document, end). Tokens of the whole axis.
struct Task {
  std::int64_t document = 0, begin = 0, end = 0;
  int home = 0;    ///< the rank that holds the queries: one run of its
  int server = 0;  ///< that attends
  std::int64_t rows() const { return end - begin; }
  std::int64_t keys() const { return end - document; }
  /// Visible (query, key) pairs.
  std::int64_t area() const { return rows() * keys() - rows() * (rows() - 1) / 2; }
  bool operator==(const Task&) const = default;
};

/// Shards are cut at multiples of so many rows from where a run of their home begins in the
/// document: a tile of the kernels' (FlashAttention-2's; DistCA, figure 5).
constexpr std::int64_t kShardRows = 128;

/// Bytes of a row with all its heads, in one direction of a call.
struct RowBytes {
  std::int64_t query = 0;         ///< sent to a server: q, or backward q, dout, LSE and delta
  std::int64_t key = 0;           ///< sent to a server: k and v
  std::int64_t result = 0;        ///< sent home: out and LSE, or dq
  std::int64_t key_gradient = 0;  ///< sent home, of each task's keys: dk and dv; forward 0
};

/// What the planner is a function of.
struct TaskInputs {
  /// Where documents begin, rising, and the number of tokens: attention::independent_parts().
  std::span<const std::int64_t> documents;
  const Layout& layout;  ///< dedicated servers are ranks of it, without rows
  AttentionServers servers;
  double tolerance = 0.05;  ///< of the largest load over the mean
  RowBytes bytes;
};

/// Who computes what. A pure function of its inputs: all ranks make the same.
struct TaskPlan {
  /// By document, then by first query: every query row is in one. A task is as long as its home's
  /// run and its server allow.
  std::vector<Task> tasks;
  std::vector<std::int64_t> areas;  ///< of each server
  /// Largest load (area over speed) of a server, over what it would be were all loads equal.
  double imbalance = 1;
  /// Less than this no plan of shards of kShardRows rows can have: the largest one, and the two
  /// smallest of the servers + 1 largest, on the fastest server. 1 where that says nothing.
  /// `imbalance` is at most 1 + tolerance where speeds are alike and the largest shard is at most
  /// `tolerance` of the mean; elsewhere as low as moves of single shards make it.
  double reachable = 1;
  /// XXH64 of the tasks.
  std::uint64_t digest = 0;
};

/// The number of servers: ranks of the axis, or AttentionServers::count.
int server_count(const Layout& layout, const AttentionServers& servers);
/// The rank that a server is; -1 of an external one.
int server_rank(const Layout& layout, const AttentionServers& servers, int server);

/// Fits every limit and is within tolerance where shards permit, by moving the most work per byte
/// from the most loaded server to others (the rule stands in parallel/README.md). Bytes count what
/// the destination does not have: keys whose home it is or that another task brings are not sent
/// again. A plan that keeps servers.buffer_bytes without trying is the plan; else one is sought
/// that keeps it and is within the tolerance, or, where shards do not permit that, as balanced as
/// the plan without a limit. Throws Error(config) where none is found, naming the rank that
/// receives most bytes without a limit, them, and the limit (the search is short: one that exists
/// may be missed, never one that receives no more than the plan without a limit); and over a layout
/// whose runs are not of consecutive tokens. Cost at the tolerance 0.05: 3 to 35 ms for 512 servers
/// and 3,000 documents. Where that plan does not keep the limit, searches take as many steps again
/// and 256 for each server and each part of a document on a rank: up to 0.1 s, and 1 s for 50,000
/// documents.
TaskPlan plan_tasks(const TaskInputs& inputs);

/// Bytes of one exchange, by pair.
struct PairBytes {
  int from = 0, to = 0;  ///< ranks; to (dispatch) and from (returned) external server s: ranks + s
  std::int64_t bytes = 0;
  bool operator==(const PairBytes&) const = default;
};
/// What a plan's exchanges send between ranks, by (from, to), none of 0 bytes: exactly what the
/// scheme's programs do.
struct PlanBytes {
  std::vector<PairBytes> dispatched, returned;
  std::int64_t total() const;
  /// Most that one rank receives in both together.
  std::int64_t peak_received() const;
};
PlanBytes plan_bytes(const TaskPlan& plan, const TaskInputs& inputs);

}  // namespace longhaul::parallel
