// The run of all ranks. Checks of a single program are in form.cpp and program_checks.cpp, the
// shadow values of a rank in shadow.cpp.
#include "parallel/verifier/verifier.h"

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "parallel/verifier/form.h"
#include "parallel/verifier/program_checks.h"
#include "parallel/verifier/prove.h"
#include "parallel/verifier/shadow.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;

/// Runs all ranks' programs over shadow values.
class Rehearsal {
 public:
  Rehearsal(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout)
      : units_(shadow_units(schedule, masks)), expected_(schedule, masks, layout, units_) {
    for (const Program& program : schedule.programs)
      ranks_.emplace_back(program, schedule, expected_, units_);
    queues_.resize(static_cast<std::size_t>(schedule.channels) * ranks_.size() * ranks_.size());
  }

  void all() {
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) ready_.push_back(rank);
    while (!ready_.empty()) {
      const int rank = ready_.front();
      ready_.pop_front();
      ranks_[static_cast<std::size_t>(rank)].queued = false;
      advance(rank);
    }
    for (const Rank& rank : ranks_) finished(rank);
    for (Rank& rank : ranks_) rank.shadow.check_outputs();
  }

 private:
  struct Rank {
    Rank(const Program& p, const Schedule& schedule, const ExpectedSums& expected,
         const ShadowUnits& units)
        : program(p),
          shadow(p, schedule, expected, units),
          complete(p.steps.size(), false),
          started(p.steps.size(), false),
          open_messages(p.steps.size(), 0),
          queues(static_cast<std::size_t>(schedule.channels) + 1) {
      for (int step = 0; step < static_cast<int>(p.steps.size()); ++step) {
        queues[static_cast<std::size_t>(p.steps[static_cast<std::size_t>(step)].stream)].push_back(
            step);
      }
    }
    const Program& program;
    Shadow shadow;
    std::vector<bool> complete, started;
    std::vector<int> open_messages;
    std::vector<std::deque<int>> queues;
    bool queued = true;
  };
  struct Posted {
    int rank, step;
    const Message* message;
  };
  /// Messages of one channel between one pair of ranks that wait for their counterpart, in order:
  /// sends or receives, never both. Numbers in waiting_.
  struct Queue {
    int first = kNone, last = kNone;
    bool of_sends = false;
  };
  struct Waiting {
    Posted posted;
    int next;
  };
  static constexpr int kNone = -1;
  /// Of a communication stream, sender and receiver.
  std::size_t pair_index(int stream, int sender, int receiver) const {
    const auto ranks = ranks_.size();
    return (static_cast<std::size_t>(stream - 1) * ranks + static_cast<std::size_t>(sender)) *
               ranks +
           static_cast<std::size_t>(receiver);
  }

  void wake(int rank) {
    Rank& r = ranks_[static_cast<std::size_t>(rank)];
    if (!r.queued) {
      r.queued = true;
      ready_.push_back(rank);
    }
  }

  void advance(int rank) {
    Rank& r = ranks_[static_cast<std::size_t>(rank)];
    for (bool moved = true; moved;) {
      moved = false;
      for (auto& queue : r.queues) {
        while (!queue.empty() && step_runs(rank, r, queue.front())) {
          queue.pop_front();
          moved = true;
        }
      }
    }
  }

  /// True when the step is complete.
  bool step_runs(int rank, Rank& r, int index) {
    const auto i = static_cast<std::size_t>(index);
    const Step& step = r.program.steps[i];
    if (r.started[i]) return r.complete[i];
    for (const int wait : step.waits) {
      if (!r.complete[static_cast<std::size_t>(wait)]) return false;
    }
    r.started[i] = true;
    if (const auto* transfer = std::get_if<Transfer>(&step.operation)) {
      r.open_messages[i] = static_cast<int>(transfer->sends.size() + transfer->receives.size());
      for (const Message& m : transfer->receives)
        post(queues_[pair_index(step.stream, m.peer, rank)], {rank, index, &m}, false);
      for (const Message& m : transfer->sends)
        post(queues_[pair_index(step.stream, rank, m.peer)], {rank, index, &m}, true);
      r.complete[i] = r.open_messages[i] == 0;
      return r.complete[i];
    }
    r.shadow.run(index);
    r.complete[i] = true;
    return true;
  }

  void post(Queue& queue, const Posted& posted, bool is_send) {
    if (queue.first == kNone || queue.of_sends == is_send) {
      wait(queue, posted, is_send);
      return;
    }
    const int number =
        std::exchange(queue.first, waiting_[static_cast<std::size_t>(queue.first)].next);
    const Posted other = waiting_[static_cast<std::size_t>(number)].posted;
    free_.push_back(number);
    is_send ? match(posted, other) : match(other, posted);
  }

  void wait(Queue& queue, const Posted& posted, bool is_send) {
    int number = static_cast<int>(waiting_.size());
    if (free_.empty()) {
      waiting_.push_back({posted, kNone});
    } else {
      number = free_.back();
      free_.pop_back();
      waiting_[static_cast<std::size_t>(number)] = {posted, kNone};
    }
    if (queue.first == kNone) {
      queue.first = number;
    } else {
      waiting_[static_cast<std::size_t>(queue.last)].next = number;
    }
    queue.last = number;
    queue.of_sends = is_send;
  }

  void match(const Posted& send, const Posted& receive) {
    Rank& from = ranks_[static_cast<std::size_t>(send.rank)];
    Rank& to = ranks_[static_cast<std::size_t>(receive.rank)];
    const auto differ = [&](const std::string& what) {
      throw Verdict{Fault::mismatch, concat(place(from.program, send.step), " sends to ",
                                            place(to.program, receive.step), ": ", what)};
    };
    if (send.message->tag != receive.message->tag)
      differ(concat("tags ", send.message->tag, " and ", receive.message->tag));
    if (send.message->wire_dtype != receive.message->wire_dtype) differ("wire dtypes differ");
    if (send.message->passing != receive.message->passing)
      differ("one lends, copies or gives back where the other does not");
    if (send.message->views.size() != receive.message->views.size())
      differ("different numbers of views");
    for (std::size_t v = 0; v < send.message->views.size(); ++v) {
      const View& a = send.message->views[v];
      const View& b = receive.message->views[v];
      if (v > 0 && same_stretch(send.message->views[v - 1], a) !=
                       same_stretch(receive.message->views[v - 1], b))
        differ("their views form different stretches");
      if (from.program.slot(a).record != to.program.slot(b).record || !same_extent(a, b))
        differ(concat(show(from.program, a), " does not fit ", show(to.program, b)));
      if (send.message->passing == Passing::give_back) {
        if (!ends_loan(send.rank, a, receive.rank, b))
          differ(concat(show(from.program, a), " is not what was lent of ", show(to.program, b)));
        continue;
      }
      if (send.message->passing == Passing::lend) loans_[{receive.rank, b.slot}] = {send.rank, a};
      to.shadow.deliver(b, receive.step, from.shadow, a, send.step);
    }
    require_one_collective(send, receive);
    for (const Posted& side : {send, receive}) {
      Rank& r = ranks_[static_cast<std::size_t>(side.rank)];
      const auto i = static_cast<std::size_t>(side.step);
      if (--r.open_messages[i] == 0) {
        r.complete[i] = true;
        wake(side.rank);
      }
    }
  }

  /// Whether that rank's slot is on loan from this view.
  bool ends_loan(int borrower, const View& borrowed, int lender, const View& lent) const {
    const auto loan = loans_.find({borrower, borrowed.slot});
    return loan != loans_.end() && loan->second == std::pair(lender, lent);
  }

  /// What several ranks' programs show of the rule at TransferKind: both sides are marked alike
  /// over the same group, and a step meets one step of each peer.
  void require_one_collective(const Posted& one, const Posted& other) {
    Rank& r = ranks_[static_cast<std::size_t>(one.rank)];
    const Transfer& mine = transfer_of(one);
    const Transfer& theirs = transfer_of(other);
    if (mine.kind == TransferKind::none && theirs.kind == TransferKind::none) return;
    const auto differ = [&](const char* what) {
      throw Verdict{
          Fault::mismatch,
          concat(place(r.program, one.step), " is marked ", name(mine.kind), " and meets ",
                 place(ranks_[static_cast<std::size_t>(other.rank)].program, other.step),
                 ", marked ", name(theirs.kind), ": ", what)};
    };
    if (mine.kind != theirs.kind) differ("one collective has one kind");
    if (group_of(mine, one.rank) != group_of(theirs, other.rank))
      differ("one collective has one group");
  }
  const Transfer& transfer_of(const Posted& posted) const {
    const Program& program = ranks_[static_cast<std::size_t>(posted.rank)].program;
    return std::get<Transfer>(program.steps[static_cast<std::size_t>(posted.step)].operation);
  }

  void finished(const Rank& rank) const {
    for (const auto& queue : rank.queues) {
      if (queue.empty()) continue;
      const int step = queue.front();
      std::string why = "waits for steps that never complete";
      if (rank.started[static_cast<std::size_t>(step)]) {
        why = concat(rank.open_messages[static_cast<std::size_t>(step)],
                     " of its messages have no counterpart");
      }
      throw Verdict{Fault::deadlock, concat(place(rank.program, step), " is stuck: ", why)};
    }
  }

  const ShadowUnits units_;
  const ExpectedSums expected_;
  std::deque<Rank> ranks_;
  std::deque<int> ready_;
  std::vector<Queue> queues_;  // by pair_index()
  std::vector<Waiting> waiting_;
  std::vector<int> free_;                                      // numbers in waiting_
  std::map<std::pair<int, int>, std::pair<int, View>> loans_;  // by borrower and its slot
};

}  // namespace

const char* name(Fault fault) {
  switch (fault) {
    case Fault::none:
      return "none";
    case Fault::malformed:
      return "malformed";
    case Fault::hazard:
      return "hazard";
    case Fault::deadlock:
      return "deadlock";
    case Fault::mismatch:
      return "mismatch";
    case Fault::undefined:
      return "undefined";
    case Fault::misplaced:
      return "misplaced";
    case Fault::coverage:
      return "coverage";
  }
  return "unknown";
}

Verdict prove(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout,
              const std::function<void(const Program&)>& check_slots) {
  Verdict proven;
  try {
    const auto ranks = static_cast<std::size_t>(layout.ranks());
    if (schedule.programs.size() != ranks || masks.tokens() != layout.tokens()) {
      return {Fault::malformed,
              concat(schedule.programs.size(), " programs and a mask of ", masks.tokens(),
                     " tokens for a layout of ", ranks, " ranks and ", layout.tokens(), " tokens")};
    }
    if (!masks.shared() && masks.heads() != schedule.shapes.heads) {
      return {Fault::malformed, concat("masks of ", masks.heads(), " heads for ",
                                       schedule.shapes.heads, " query heads")};
    }
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const Program& program = schedule.programs[rank];
      if (program.rank != static_cast<int>(rank))
        return {Fault::malformed, concat("program ", rank, " is of rank ", program.rank)};
      check_slots(program);
      check_form(program, schedule);
      check_loans(program);
      check_hazards(program, schedule.channels);
      proven.peak_staging_bytes =
          std::max(proven.peak_staging_bytes, count(program).staging_bytes());
      proven.peak_scratch_bytes = std::max(proven.peak_scratch_bytes, scratch_bytes(program));
    }
    Rehearsal run(schedule, masks, layout);
    run.all();
  } catch (const Verdict& verdict) {
    return verdict;
  }
  return proven;
}

Verdict verify(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout) {
  return prove(schedule, masks, layout, [&](const Program& program) {
    check_bound_slots(program, schedule, masks, layout);
  });
}

Verdict verify_saved(const Schedule& forward, const Schedule& backward) {
  if (forward.programs.size() != backward.programs.size())
    return {Fault::malformed, concat(forward.programs.size(), " programs forward and ",
                                     backward.programs.size(), " backward")};
  const auto saved = [](const Program& program) {
    std::vector<const Slot*> slots;
    for (const Slot& slot : program.slots) {
      if (slot.role == Role::saved) slots.push_back(&slot);
    }
    return slots;
  };
  for (std::size_t rank = 0; rank < forward.programs.size(); ++rank) {
    const auto kept = saved(forward.programs[rank]), given = saved(backward.programs[rank]);
    const bool same = std::ranges::equal(kept, given, [](const Slot* a, const Slot* b) {
      return a->name == b->name && a->record == b->record && a->rows == b->rows &&
             a->heads == b->heads && a->tokens == b->tokens;
    });
    if (!same)
      return {Fault::malformed,
              concat("rank ", rank, ": backward is given other slots than forward keeps")};
  }
  return {};
}

}  // namespace longhaul::parallel
