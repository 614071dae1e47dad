// Core attention disaggregation (DistCA, Zhuang et al. 2025, arXiv 2510.18121): query shards with
// the keys that they see, called tasks, are attended by whichever rank has time. A plan
// (disaggregation/tasks.h) says who does which; here it becomes one exchange there, one step of
// attention over many tasks, and one exchange back. Each rank meanwhile attends what it has all of.
//
// What a task gives depends on the task alone, and gradients of keys are added at their home in the
// order of tasks, so with a float32 wire the same tasks give the same bits whoever does them; a
// bfloat16 wire rounds the gradients that travel, and only those.
//
// Bytes sent: a query row once to the rank that attends it, a key row once to each rank that needs
// it (never where it lives), results once back; backward the gradients of all keys of a task that
// live elsewhere.

#include "parallel/schemes/disaggregated.h"

#include <algorithm>
#include <map>
#include <memory>

#include "parallel/builder.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

/// Tokens [begin, end) of one rank, consecutive rows from `row` on.
struct Piece {
  std::int64_t begin, end;
  int rank;
  std::int64_t row;
};

/// The keys [document, end) that tasks of a rank see, and where they are: its own rows, or rows of
/// the slot that it gathers them in.
struct Region {
  std::int64_t document, end;
  bool own = false;
  std::int64_t row = 0;
};

RowBytes row_bytes(const SchemeInputs& inputs, Direction direction) {
  const AttentionRecords records(inputs.shapes);
  const int heads = inputs.shapes.heads, kv_heads = inputs.shapes.kv_heads;
  if (direction == Direction::forward)
    return {heads * records.q.cell_bytes(), kv_heads * records.kv.cell_bytes(),
            heads * records.partial.cell_bytes(), 0};
  return {heads * records.q_bundle.cell_bytes(), kv_heads * records.kv.cell_bytes(),
          heads * records.dq.cell_bytes(inputs.wire_dtype),
          kv_heads * records.dkv.cell_bytes(inputs.wire_dtype)};
}

bool resends(const Expression& scheme) { return scheme.boolean("resend").value_or(true); }

/// What all ranks' programs are made from.
class TaskTable {
 public:
  TaskTable(const SchemeInputs& inputs, TaskPlan plan)
      : plan_(std::move(plan)),
        external_(inputs.servers.mode == ServerMode::external),
        first_server_(external_ ? 0 : server_rank(inputs.layout, inputs.servers, 0)) {
    const Layout& layout = inputs.layout;
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      std::int64_t row = 0;
      for (const Run& run : layout.runs(rank)) {
        pieces_.push_back({run.first, run.first + run.count, rank, row});
        row += run.count;
      }
    }
    std::ranges::sort(pieces_, {}, &Piece::begin);
    by_worker_.resize(static_cast<std::size_t>(layout.ranks()));
    for (std::size_t i = 0; i < plan_.tasks.size(); ++i)
      by_worker_[static_cast<std::size_t>(worker(plan_.tasks[i]))].push_back(i);
    for (int rank = 0; rank < layout.ranks(); ++rank) regions_.push_back(regions_of(rank));
  }

  const TaskPlan& plan() const { return plan_; }
  bool external() const { return external_; }
  int ranks() const { return static_cast<int>(by_worker_.size()); }
  /// The rank that has the task's step: it attends itself, or hands the task to a server.
  int worker(const Task& task) const { return external_ ? task.home : first_server_ + task.server; }
  /// Tasks that a rank has the step of, by their numbers, rising.
  const std::vector<std::size_t>& tasks_of(int rank) const {
    return by_worker_[static_cast<std::size_t>(rank)];
  }
  /// By document.
  const std::vector<Region>& regions(int rank) const {
    return regions_[static_cast<std::size_t>(rank)];
  }
  const Region& region(int rank, std::int64_t document) const {
    return *std::ranges::lower_bound(regions(rank), document, {}, &Region::document);
  }
  /// Rows of the slot that a rank gathers keys in.
  std::int64_t gathered_rows(int rank) const {
    std::int64_t rows = 0;
    for (const Region& region : regions(rank))
      rows += region.own ? 0 : region.end - region.document;
    return rows;
  }

  /// Calls visit(piece) for the parts of tokens [begin, end), in order.
  template <class Visit>
  void for_pieces(std::int64_t begin, std::int64_t end, const Visit& visit) const {
    auto at = std::ranges::upper_bound(pieces_, begin, {}, &Piece::begin) - 1;
    for (; begin < end; ++at) {
      const std::int64_t last = std::min(end, at->end);
      visit(Piece{begin, last, at->rank, at->row + begin - at->begin});
      begin = last;
    }
  }
  /// The row of a token where it lives.
  std::int64_t home_row(std::int64_t token) const {
    std::int64_t row = -1;
    for_pieces(token, token + 1, [&](const Piece& piece) { row = piece.row; });
    return row;
  }

 private:
  std::vector<Region> regions_of(int rank) const {
    std::vector<Region> regions;
    std::int64_t gathered = 0;
    for (const std::size_t i : tasks_of(rank)) {
      const Task& task = plan_.tasks[i];
      if (regions.empty() || regions.back().document != task.document)
        regions.push_back({task.document, 0});
      regions.back().end = std::max(regions.back().end, task.end);
    }
    for (Region& region : regions) {
      for_pieces(region.document, region.document + 1, [&](const Piece& first) {
        region.own = first.rank == rank;
        region.row = first.row;
      });
      for_pieces(region.document, region.end, [&](const Piece& piece) {
        region.own &= piece.rank == rank && piece.row - region.row == piece.begin - region.document;
      });
      if (region.own) continue;
      region.row = gathered;
      gathered += region.end - region.document;
    }
    return regions;
  }

  const TaskPlan plan_;
  const bool external_;
  const int first_server_;
  std::vector<Piece> pieces_;  // of all ranks, by token
  std::vector<std::vector<std::size_t>> by_worker_;
  std::vector<std::vector<Region>> regions_;  // by rank, then document
};

/// views(i) for each number.
template <class Views>
auto all(const std::vector<std::size_t>& numbers, const Views& views) {
  std::vector<decltype(views(0))> tasks;
  tasks.reserve(numbers.size());
  for (const std::size_t i : numbers) tasks.push_back(views(i));
  return tasks;
}

/// Task k of a document sees [document, end): what the ones before it see, and its own queries'
/// keys.
class TaskRank {
 public:
  TaskRank(const SchemeInputs& inputs, const TaskTable& table, int rank)
      : inputs_(inputs),
        table_(table),
        rank_(rank),
        resend_(resends(inputs.scheme)),
        records_(inputs.shapes),
        builder_(rank, 1) {
    const auto& tasks = table.plan().tasks;
    std::int64_t rows = 0;
    for (const std::size_t i : table.tasks_of(rank)) {
      if (tasks[i].home == rank) continue;
      arrived_row_[i] = rows;
      rows += tasks[i].rows();
      arrived_tokens_.push_back({tasks[i].begin, tasks[i].rows()});
    }
    arrived_rows_ = rows;
  }

  Program forward() && {
    const View q = add_input("q", records_.q), kv = add_input("kv", records_.kv),
               out = builder_.add_slot(output_slot("out", records_.partial, inputs_, rank_));
    const View q_arrived = add_arrived("q_arrived", records_.q, role_of_kept()),
               gathered = add_gathered(role_of_kept()),
               results = add_arrived("out_of_others", records_.partial, Role::scratch);
    dispatch(q, q_arrived, &kv, &gathered);
    const auto views = [&](std::size_t i) {
      const Task& task = tasks()[i];
      return TaskViews{query_rows(i, q, q_arrived), key_rows(task, kv, gathered), band(task),
                       query_rows(i, out, results), server(task)};
    };
    const Turns turns = take_turns();
    builder_.set_phase(1);
    builder_.attend_tasks(all(turns.at_home, views));
    gather_own(kv, gathered);
    builder_.attend_tasks(all(turns.of_others, views));
    give_back({out, results}, nullptr, nullptr);
    builder_.attend_tasks(all(turns.with_gathered_keys, views));
    return finish();
  }

  Program backward() && {
    std::optional<View> q;
    if (!resend_) q = add_input("q", records_.q);
    const Record& bundle_record = resend_ ? records_.q_bundle : records_.dout_bundle;
    const View bundle = add_input(resend_ ? "q_bundle" : "dout_bundle", bundle_record),
               kv = add_input("kv", records_.kv),
               dq = builder_.add_slot(output_slot("dq", records_.dq, inputs_, rank_)),
               dkv = builder_.add_slot(output_slot("dkv", records_.dkv, inputs_, rank_));
    std::optional<View> q_arrived;
    if (!resend_) q_arrived = add_arrived("q_arrived", records_.q, Role::saved);
    const View bundle_arrived = add_arrived("bundle_arrived", bundle_record, Role::scratch),
               gathered = add_gathered(role_of_kept()),
               results = add_arrived("dq_of_others", records_.dq, Role::scratch);
    place_parts();
    const View parts = builder_.scratch("dkv_parts", records_.dkv, parts_rows_, kv_heads()),
               arrived = builder_.scratch("dkv_arrived", records_.dkv, received_rows_, kv_heads());
    dispatch(bundle, bundle_arrived, resend_ ? &kv : nullptr, resend_ ? &gathered : nullptr);
    const auto views = [&](std::size_t i) {
      const Task& task = tasks()[i];
      std::optional<View> queries;
      if (q) queries = query_rows(i, *q, *q_arrived);
      return TaskGradientViews{query_rows(i, bundle, bundle_arrived),
                               queries,
                               key_rows(task, kv, gathered),
                               band(task),
                               query_rows(i, dq, results),
                               writes_home(task) ? key_rows(task, dkv, dkv) : part(i, parts),
                               server(task)};
    };
    const Turns turns = take_turns();
    builder_.set_phase(1);
    builder_.attend_tasks_backward(all(turns.at_home, views));
    if (resend_) gather_own(kv, gathered);
    builder_.attend_tasks_backward(all(turns.of_others, views));
    builder_.attend_tasks_backward(all(turns.with_gathered_keys, views));
    give_back({dq, results}, &parts, &arrived);
    add_in_order(dkv, parts, arrived);
    return finish();
  }

 private:
  /// A tensor of this rank's rows, and of those that arrived from others.
  struct Rows {
    View own, arrived;
  };
  /// This rank's tasks in the order of their turns: those that need nothing of others, those of
  /// others, whose results are awaited, and the rest.
  struct Turns {
    std::vector<std::size_t> at_home, of_others, with_gathered_keys;
  };

  const std::vector<Task>& tasks() const { return table_.plan().tasks; }
  int kv_heads() const { return inputs_.shapes.kv_heads; }
  int server(const Task& task) const { return table_.external() ? task.server : -1; }
  Role role_of_kept() const { return resend_ ? Role::scratch : Role::saved; }
  static Slice band(const Task& task) {
    return {0, task.rows(), 0, task.keys(), -attention::kUnbounded, task.begin - task.document};
  }

  View add_input(const char* slot, const Record& record) {
    return builder_.add_slot(input_slot(slot, record, inputs_, rank_));
  }
  View add_arrived(const char* slot, const Record& record, Role role) {
    return builder_.add_slot({slot, record, arrived_rows_, inputs_.shapes.heads, role,
                              role == Role::saved ? arrived_tokens_ : std::vector<Run>()});
  }
  View add_gathered(Role role) {
    std::vector<Run> tokens;
    for (const Region& region : table_.regions(rank_)) {
      if (!region.own && role == Role::saved)
        tokens.push_back({region.document, region.end - region.document});
    }
    return builder_.add_slot(
        {"kv_gathered", records_.kv, table_.gathered_rows(rank_), kv_heads(), role, tokens});
  }

  Turns take_turns() const {
    Turns turns;
    for (const std::size_t i : table_.tasks_of(rank_)) {
      const Task& task = tasks()[i];
      const bool own_keys = table_.region(rank_, task.document).own && !table_.external();
      (task.home != rank_ ? turns.of_others
       : own_keys         ? turns.at_home
                          : turns.with_gathered_keys)
          .push_back(i);
    }
    return turns;
  }
  /// Of a task that this rank has the step of.
  View query_rows(std::size_t i, const View& own, const View& arrived) const {
    const Task& task = tasks()[i];
    const bool here = task.home == rank_;
    const std::int64_t row = here ? table_.home_row(task.begin) : arrived_row_.at(i);
    return rows_of(here ? own : arrived, row, row + task.rows());
  }
  View key_rows(const Task& task, const View& own, const View& gathered) const {
    const Region& region = table_.region(rank_, task.document);
    return rows_of(region.own ? own : gathered, region.row, region.row + task.keys());
  }

  /// Queries to the ranks that attend them, and keys to where they are needed and do not live.
  void dispatch(const View& q, const View& q_arrived, const View* kv, const View* gathered) {
    std::map<int, Message> sends, receives;
    for (std::size_t i = 0; i < tasks().size(); ++i) {
      const Task& task = tasks()[i];
      const int worker = table_.worker(task);
      if (task.home == worker) continue;
      if (task.home == rank_) {
        const std::int64_t row = table_.home_row(task.begin);
        message(sends, worker).views.push_back(rows_of(q, row, row + task.rows()));
      } else if (worker == rank_) {
        message(receives, task.home).views.push_back(query_rows(i, q, q_arrived));
      }
    }
    for (int worker = 0; kv != nullptr && worker < table_.ranks(); ++worker) {
      for (const Region& region : table_.regions(worker)) {
        if (region.own) continue;
        table_.for_pieces(region.document, region.end, [&](const Piece& piece) {
          if (piece.rank == worker || (piece.rank != rank_ && worker != rank_)) return;
          const std::int64_t row =
              worker == rank_ ? region.row + piece.begin - region.document : piece.row;
          const View rows =
              rows_of(worker == rank_ ? *gathered : *kv, row, row + piece.end - piece.begin);
          message(worker == rank_ ? receives : sends, worker == rank_ ? piece.rank : worker)
              .views.push_back(rows);
        });
      }
    }
    exchange(std::move(sends), std::move(receives));
  }

  /// Keys that live here join those that came.
  void gather_own(const View& kv, const View& gathered) {
    std::vector<View> from, to;
    for (const Region& region : table_.regions(rank_)) {
      if (region.own) continue;
      table_.for_pieces(region.document, region.end, [&](const Piece& piece) {
        if (piece.rank != rank_) return;
        const std::int64_t rows = piece.end - piece.begin,
                           row = region.row + piece.begin - region.document;
        from.push_back(rows_of(kv, piece.row, piece.row + rows));
        to.push_back(rows_of(gathered, row, row + rows));
      });
    }
    if (!from.empty()) builder_.copy(std::move(from), std::move(to));
  }

  /// Results to the homes of their queries; backward the gradients of keys to theirs.
  void give_back(const Rows& results, const View* parts, const View* arrived) {
    const std::optional<runtime::DType> wire = parts == nullptr ? std::nullopt : inputs_.wire_dtype;
    std::map<int, Message> sends, receives;
    for (std::size_t i = 0; i < tasks().size(); ++i) {
      const Task& task = tasks()[i];
      const int worker = table_.worker(task);
      if (task.home == worker) continue;
      if (worker == rank_) {
        message(sends, task.home, wire)
            .views.push_back(query_rows(i, results.own, results.arrived));
      } else if (task.home == rank_) {
        const std::int64_t row = table_.home_row(task.begin);
        message(receives, worker, wire)
            .views.push_back(rows_of(results.own, row, row + task.rows()));
      }
    }
    for (std::size_t i = 0; parts != nullptr && i < tasks().size(); ++i) {
      const Task& task = tasks()[i];
      const int worker = table_.worker(task);
      table_.for_pieces(task.document, task.end, [&](const Piece& piece) {
        if (piece.rank == worker) return;
        if (worker == rank_) {
          message(sends, piece.rank, wire)
              .views.push_back(
                  rows_of(part(i, *parts), piece.begin - task.document, piece.end - task.document));
        } else if (piece.rank == rank_) {
          message(receives, worker, wire).views.push_back(received(i, piece, *arrived));
        }
      });
    }
    exchange(std::move(sends), std::move(receives));
  }

  static Message& message(std::map<int, Message>& messages, int peer,
                          std::optional<runtime::DType> wire = {}) {
    return messages.try_emplace(peer, Message{peer, {}, 0, wire}).first->second;
  }
  void exchange(std::map<int, Message> sends, std::map<int, Message> receives) {
    std::vector<Message> out, in;
    for (auto& [peer, message] : sends) out.push_back(std::move(message));
    for (auto& [peer, message] : receives) in.push_back(std::move(message));
    builder_.transfer(0, std::move(out), std::move(in));
  }

  // ---- gradients of keys

  /// The first task of a document whose keys all live here gives the first terms of their sums.
  bool writes_home(const Task& task) const {
    return task.begin == task.document && table_.worker(task) == rank_ &&
           table_.region(rank_, task.document).own;
  }
  /// Where the gradients that this rank's tasks make, and those that it receives, lie.
  void place_parts() {
    for (const std::size_t i : table_.tasks_of(rank_)) {
      if (writes_home(tasks()[i])) continue;
      part_row_[i] = parts_rows_;
      parts_rows_ += tasks()[i].keys();
    }
    for (std::size_t i = 0; i < tasks().size(); ++i) {
      if (table_.worker(tasks()[i]) == rank_) continue;
      table_.for_pieces(tasks()[i].document, tasks()[i].end, [&](const Piece& piece) {
        if (piece.rank != rank_) return;
        received_row_[{i, piece.begin}] = received_rows_;
        received_rows_ += piece.end - piece.begin;
      });
    }
  }
  View part(std::size_t i, const View& parts) const {
    const std::int64_t row = part_row_.at(i);
    return rows_of(parts, row, row + tasks()[i].keys());
  }
  View received(std::size_t i, const Piece& piece, const View& arrived) const {
    const std::int64_t row = received_row_.at({i, piece.begin});
    return rows_of(arrived, row, row + piece.end - piece.begin);
  }

  /// dkv <- the sum over tasks in their order: of the keys that no task before it saw, its
  /// gradient; to the others it is added. The k-th tasks of all documents go together.
  void add_in_order(const View& dkv, const View& parts, const View& arrived) {
    struct Pairs {
      std::vector<View> from, to;
    };
    std::vector<Pairs> first, more;  // by k
    std::size_t k = 0;
    for (std::size_t i = 0; i < tasks().size(); ++i) {
      const Task& task = tasks()[i];
      k = task.begin == task.document ? 0 : k + 1;
      first.resize(std::max(first.size(), k + 1));
      more.resize(first.size());
      if (writes_home(task)) continue;
      table_.for_pieces(task.document, task.end, [&](const Piece& piece) {
        if (piece.rank != rank_) return;
        const View from =
            table_.worker(task) == rank_
                ? rows_of(part(i, parts), piece.begin - task.document, piece.end - task.document)
                : received(i, piece, arrived);
        const View to = rows_of(dkv, piece.row, piece.row + piece.end - piece.begin);
        const std::int64_t seen =
            std::clamp(task.begin - piece.begin, std::int64_t{0}, from.rows());
        const auto add = [&](Pairs& pairs, std::int64_t begin, std::int64_t end) {
          if (begin == end) return;
          pairs.from.push_back(rows_of(from, begin, end));
          pairs.to.push_back(rows_of(to, begin, end));
        };
        add(more[k], 0, seen);
        add(first[k], seen, from.rows());
      });
    }
    for (std::size_t turn = 0; turn < first.size(); ++turn) {
      if (!first[turn].from.empty())
        builder_.copy(std::move(first[turn].from), std::move(first[turn].to));
      if (!more[turn].from.empty())
        builder_.accumulate(std::move(more[turn].from), std::move(more[turn].to));
    }
  }

  Program finish() {
    Program program = std::move(builder_).finish();
    program.task_digest = table_.plan().digest;
    return program;
  }

  const SchemeInputs& inputs_;
  const TaskTable& table_;
  const int rank_;
  const bool resend_;
  const AttentionRecords records_;
  Builder builder_;
  std::map<std::size_t, std::int64_t> arrived_row_;  // of others' tasks
  std::int64_t arrived_rows_ = 0;
  std::vector<Run> arrived_tokens_;
  std::map<std::size_t, std::int64_t> part_row_;
  std::map<std::pair<std::size_t, std::int64_t>, std::int64_t> received_row_;
  std::int64_t parts_rows_ = 0, received_rows_ = 0;
};

}  // namespace

TaskPlan plan_of(const SchemeInputs& inputs) {
  // Without resending backward goes where forward's rows have stayed.
  const Direction direction = resends(inputs.scheme) ? inputs.direction : Direction::forward;
  const std::vector<std::int64_t> documents = attention::independent_parts(inputs.masks);
  return plan_tasks({documents, inputs.layout, inputs.servers,
                     inputs.scheme.decimal("tolerance").value_or(0.05),
                     row_bytes(inputs, direction)});
}

ProgramGenerator prepare_tasks(const SchemeInputs& inputs, TaskPlan plan) {
  auto table = std::make_shared<const TaskTable>(inputs, std::move(plan));
  return [&inputs, table](int rank) {
    TaskRank of(inputs, *table, rank);
    return inputs.direction == Direction::forward ? std::move(of).forward()
                                                  : std::move(of).backward();
  };
}

namespace {

ProgramGenerator prepare_disaggregated(const SchemeInputs& inputs) {
  return prepare_tasks(inputs, plan_of(inputs));
}

std::optional<Refusal> refuse_disaggregated(const Combination& c) {
  if (!c.whole_past) {
    return Refusal{
        "a task is a shard of queries with all earlier keys of its document: the mask "
        "must be causal or causal_document, without a window, for every head and layer",
        {under_scheme(c, "group_cast"), under_scheme(c, "ring")}};
  }
  if (c.layout == LayoutKind::striped) {
    Combination packed = c;
    packed.layout = LayoutKind::packed;
    return Refusal{"shards are consecutive queries, and a striped rank has none", {packed}};
  }
  return {};
}

}  // namespace

const Scheme disaggregated_scheme{
    .name = "disaggregated",
    .prepare = prepare_disaggregated,
    .arguments =
        {{.name = "tolerance", .type = ArgumentType::decimal, .minimum = 0, .otherwise = "0.05"},
         {.name = "resend", .type = ArgumentType::boolean, .otherwise = "true"}},
    .refuse = refuse_disaggregated,
    .spans_data = true,
    .legality = "causal and causal_document masks without a window; not over striped"};

}  // namespace longhaul::parallel
