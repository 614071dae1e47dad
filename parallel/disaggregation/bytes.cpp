// plan_bytes(): what the exchanges of a plan send, counted from its tasks alone.

#include <algorithm>
#include <map>
#include <utility>

#include "parallel/disaggregation/tasks.h"

namespace longhaul::parallel {
namespace {

/// Rows of a document that a rank holds.
struct Held {
  std::int64_t begin = 0, end = 0;
  int home = 0;
};

class Count {
 public:
  explicit Count(int places) : by_from_(static_cast<std::size_t>(places)) {}
  void add(int from, int to, std::int64_t bytes) {
    if (from != to && bytes != 0) by_from_[static_cast<std::size_t>(from)][to] += bytes;
  }
  std::vector<PairBytes> pairs() const {
    std::vector<PairBytes> pairs;
    for (std::size_t from = 0; from < by_from_.size(); ++from) {
      for (const auto& [to, bytes] : by_from_[from])
        pairs.push_back({static_cast<int>(from), to, bytes});
    }
    return pairs;
  }

 private:
  std::vector<std::map<int, std::int64_t>> by_from_;
};

}  // namespace

PlanBytes plan_bytes(const TaskPlan& plan, const TaskInputs& inputs) {
  const int ranks = inputs.layout.ranks();
  const bool external = inputs.servers.mode == ServerMode::external;
  const RowBytes& bytes = inputs.bytes;
  Count dispatched(external ? ranks + inputs.servers.count : ranks), returned = dispatched;
  std::vector<Held> held;              // of one document, by row
  std::map<int, std::int64_t> prefix;  // of one document: where the last task of a rank ends
  for (std::size_t first = 0, last = 0; first < plan.tasks.size(); first = last) {
    held.clear();
    prefix.clear();
    for (; last < plan.tasks.size() && plan.tasks[last].document == plan.tasks[first].document;
         ++last) {
      const Task& task = plan.tasks[last];
      if (!held.empty() && held.back().home == task.home) {
        held.back().end = task.end;
      } else {
        held.push_back({task.begin, task.end, task.home});
      }
      const int keeper =
          external ? task.home : server_rank(inputs.layout, inputs.servers, task.server);
      prefix[keeper] = task.end;
    }
    const auto each_home = [&](std::int64_t end, auto&& give) {
      for (const Held& part : held) {
        if (part.begin >= end) break;
        give(part.home, std::min(part.end, end) - part.begin);
      }
    };
    for (const auto& [rank, end] : prefix) {
      each_home(end, [&, to = rank](int home, std::int64_t rows) {
        dispatched.add(home, to, rows * bytes.key);
      });
    }
    for (std::size_t t = first; t < last; ++t) {
      const Task& task = plan.tasks[t];
      int place = server_rank(inputs.layout, inputs.servers, task.server), gatherer = place;
      if (external) {
        place = ranks + task.server;
        gatherer = task.home;
        dispatched.add(gatherer, place, task.keys() * bytes.key);
        returned.add(place, gatherer, task.keys() * bytes.key_gradient);
      }
      dispatched.add(task.home, place, task.rows() * bytes.query);
      returned.add(place, task.home, task.rows() * bytes.result);
      if (bytes.key_gradient == 0) continue;
      each_home(task.end, [&](int home, std::int64_t rows) {
        returned.add(gatherer, home, rows * bytes.key_gradient);
      });
    }
  }
  return {dispatched.pairs(), returned.pairs()};
}

std::int64_t PlanBytes::total() const {
  std::int64_t sum = 0;
  for (const auto* pairs : {&dispatched, &returned}) {
    for (const PairBytes& pair : *pairs) sum += pair.bytes;
  }
  return sum;
}

std::int64_t PlanBytes::peak_received() const {
  std::map<int, std::int64_t> received;
  std::int64_t most = 0;
  for (const auto* pairs : {&dispatched, &returned}) {
    for (const PairBytes& pair : *pairs) most = std::max(most, received[pair.to] += pair.bytes);
  }
  return most;
}

}  // namespace longhaul::parallel
