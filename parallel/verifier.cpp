// Static checks, hazards and the run; the shadow values of a rank are in shadow.cpp.
#include "parallel/verifier.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <map>
#include <span>
#include <tuple>
#include <utility>

#include "parallel/builder.h"
#include "parallel/shadow.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;

std::string place(const Program& program, int step) {
  return concat("rank ", program.rank, ", step ", step, " (",
                name(program.steps[static_cast<std::size_t>(step)].operation), ")");
}
std::string show(const Program& program, const View& view) {
  const std::string slot = view.slot >= 0 && view.slot < static_cast<int>(program.slots.size())
                               ? program.slots[static_cast<std::size_t>(view.slot)].name
                               : "?";
  return concat(slot, "[", view.row_begin, ":", view.row_end, ", heads ", view.head_begin, ":",
                view.head_end, "]");
}

// ---- 0. form
// --------------------------------------------------------------------------------------------

class FormCheck {
 public:
  explicit FormCheck(const Schedule& schedule) : schedule_(schedule) {}

  void program(const Program& program) {
    program_ = &program;
    for (int index = 0; index < static_cast<int>(program.steps.size()); ++index) {
      step_ = index;
      const Step& step = program.steps[static_cast<std::size_t>(index)];
      require(step.stream >= 0 && step.stream <= schedule_.channels, "stream out of range");
      for (const int wait : step.waits)
        require(wait >= 0 && wait < index, "a wait for a later step");
      for (const Access& access : accesses(step.operation)) view(access);
      std::visit([&](const auto& operation) { check(operation); }, step.operation);
      const bool is_transfer = std::holds_alternative<Transfer>(step.operation);
      require(is_transfer == (step.stream != kCompute),
              "transfers run on channels, everything else on compute");
    }
  }

 private:
  const Slot& slot(const View& v) const {
    return program_->slots[static_cast<std::size_t>(v.slot)];
  }
  /// `text` is a string, or a function that makes one only when it is needed.
  template <class Text>
  void require(bool condition, const Text& text) const {
    if (condition) return;
    std::string why;
    if constexpr (std::is_invocable_v<Text>) {
      why = text();
    } else {
      why = text;
    }
    throw Verdict{Fault::malformed, concat(place(*program_, step_), ": ", why)};
  }
  void view(const Access& access) const {
    const View& v = access.view;
    require(v.slot >= 0 && v.slot < static_cast<int>(program_->slots.size()), "no such slot");
    require(0 <= v.row_begin && v.row_begin <= v.row_end && v.row_end <= slot(v).rows &&
                0 <= v.head_begin && v.head_begin <= v.head_end && v.head_end <= slot(v).heads,
            [&] {
              return concat("view ", show(*program_, v), " leaves its slot of ", slot(v).rows,
                            " rows");
            });
    require(!(access.write && slot(v).role == Role::input),
            [&] { return concat("writes the input ", show(*program_, v)); });
  }
  void kind(const View& v, SlotKind expected) const {
    require(slot(v).kind == expected, [&] {
      return concat(show(*program_, v), " is a ", name(slot(v).kind), ", expected ",
                    name(expected));
    });
  }
  void same_extent(const View& a, const View& b) const {
    require(a.rows() == b.rows() && a.heads() == b.heads(), [&] {
      return concat(show(*program_, a), " and ", show(*program_, b), " differ in size");
    });
  }
  void keys(const View& kv, const std::optional<View>& v) const {
    kind(kv, v ? SlotKind::k : SlotKind::kv);
    if (!v) return;
    kind(*v, SlotKind::v);
    same_extent(kv, *v);
  }
  void bands(const std::vector<Slice>& slices, const View& q, const View& kv) const {
    require(kv.heads() > 0 && q.heads() % kv.heads() == 0,
            "query heads are no multiple of key/value heads");
    for (const Slice& band : slices) {
      require(0 <= band.q_begin && band.q_end <= q.rows() && 0 <= band.k_begin &&
                  band.k_end <= kv.rows(),
              "a band leaves its views");
    }
  }
  void check(const Attend& a) const {
    kind(a.q, SlotKind::q), keys(a.kv, a.v), kind(a.partial, SlotKind::partial);
    same_extent(a.q, a.partial);
    bands(a.bands, a.q, a.kv);
  }
  void check(const AttendBackward& a) const {
    kind(a.q_bundle, SlotKind::q_bundle), keys(a.kv, a.v), kind(a.dq, SlotKind::dq),
        kind(a.dkv, SlotKind::dkv);
    same_extent(a.q_bundle, a.dq);
    same_extent(a.kv, a.dkv);
    bands(a.bands, a.q_bundle, a.kv);
  }
  void check(const Accumulate& a) const {
    require(is_accumulator(slot(a.dst).kind), "accumulates into something that is no accumulator");
    kind(a.src, slot(a.dst).kind);
    same_extent(a.src, a.dst);
    require(!overlaps(a.src, a.dst), "source and destination overlap");
  }
  void check(const Copy& c) const {
    kind(c.src, slot(c.dst).kind);
    same_extent(c.src, c.dst);
    require(!overlaps(c.src, c.dst), "source and destination overlap");
  }
  void check(const Transfer& transfer) const {
    const int ranks = static_cast<int>(schedule_.programs.size());
    for (const auto* side : {&transfer.sends, &transfer.receives}) {
      for (const Message& message : *side) {
        require(message.peer >= 0 && message.peer < ranks,
                [&] { return concat("no rank ", message.peer); });
        for (const View& v : message.views) {
          require(
              !message.wire_dtype || slot(v).kind == SlotKind::dq || slot(v).kind == SlotKind::dkv,
              "only gradient accumulators may be cast on the wire");
        }
      }
    }
    std::vector<View> sent, received;
    for (const Message& message : transfer.sends)
      sent.insert(sent.end(), message.views.begin(), message.views.end());
    for (const Message& message : transfer.receives)
      received.insert(received.end(), message.views.begin(), message.views.end());
    disjoint(received);
    std::ranges::sort(sent, {}, &View::slot);
    for (const View& into : received) {
      for (const View& from : std::ranges::equal_range(sent, into.slot, {}, &View::slot))
        require(!overlaps(from, into), "a group sends what it receives into");
    }
  }
  /// Views of the same rows follow one another by their heads: of those it is enough to compare
  /// neighbours. Others overlap none that begins at their end or later.
  void disjoint(std::vector<View>& views) const {
    std::erase_if(views, [](const View& v) { return v.rows() == 0 || v.heads() == 0; });
    const auto rows = [](const View& v) { return std::tie(v.slot, v.row_begin, v.row_end); };
    std::ranges::sort(views, [&](const View& a, const View& b) {
      return std::tuple_cat(rows(a), std::tie(a.head_begin)) <
             std::tuple_cat(rows(b), std::tie(b.head_begin));
    });
    auto next = views.begin();  // behind those of the same rows
    for (auto one = views.begin(); one != views.end(); ++one) {
      if (one == next)
        next = std::find_if(one, views.end(), [&](const View& v) { return rows(v) != rows(*one); });
      const auto apart = [&](const View& other) {
        require(!overlaps(*one, other), "receives of a group overlap");
      };
      if (one + 1 != next) apart(one[1]);
      for (auto other = next;
           other != views.end() && other->slot == one->slot && other->row_begin < one->row_end;
           ++other)
        apart(*other);
    }
  }

  const Schedule& schedule_;
  const Program* program_ = nullptr;
  int step_ = 0;
};

/// The slots that the caller binds, by name: those of the direction, once each, with the rank's
/// rows and all heads. Keys and values come as one slot or as two.
void check_bound_slots(const Program& program, const Schedule& schedule, const Layout& layout) {
  struct Bound {
    const char* name;
    SlotKind kind;
    Role role;
  };
  const bool forward = schedule.direction == Direction::forward;
  std::vector<Bound> expected{{"kv", SlotKind::kv, Role::input}};
  const auto is_kv = [](const Slot& slot) { return slot.name == "kv"; };
  if (std::ranges::none_of(program.slots, is_kv))
    expected = {{"k", SlotKind::k, Role::input}, {"v", SlotKind::v, Role::input}};
  if (forward) {
    expected.push_back({"q", SlotKind::q, Role::input});
    expected.push_back({"out", SlotKind::partial, Role::output});
  } else {
    expected.push_back({"q_bundle", SlotKind::q_bundle, Role::input});
    expected.push_back({"dq", SlotKind::dq, Role::output});
    expected.push_back({"dkv", SlotKind::dkv, Role::output});
  }
  const auto refuse = [&](Fault fault, const std::string& slot, const char* why) {
    throw Verdict{fault, concat("rank ", program.rank, ": slot ", slot, " ", why)};
  };
  std::size_t bound = 0;
  for (const Slot& slot : program.slots) bound += slot.role == Role::scratch ? 0 : 1;
  for (const Bound& wanted : expected) {
    const auto found = std::ranges::find_if(program.slots, [&](const Slot& slot) {
      return slot.name == wanted.name && slot.role == wanted.role && slot.kind == wanted.kind;
    });
    if (found == program.slots.end())
      refuse(Fault::malformed, wanted.name, "is missing, or of another kind or role");
    const int heads = is_key_side(found->kind) ? schedule.shapes.kv_heads : schedule.shapes.heads;
    if (found->heads != heads || found->first_head != 0 ||
        found->rows != layout.rows(program.rank)) {
      refuse(Fault::malformed, wanted.name, "does not have all the rank's rows and heads");
    }
    if (found->tokens != layout.runs(program.rank))
      refuse(Fault::misplaced, wanted.name, "is declared as other tokens than the layout's");
  }
  if (bound != expected.size()) {
    throw Verdict{Fault::malformed, concat("rank ", program.rank, " has ", bound,
                                           " inputs and outputs; expected ", expected.size())};
  }
}

/// Throws for a scratch slot that no step uses; bytes of all of them.
std::int64_t scratch_bytes(const Program& program, const Shapes& shapes) {
  std::vector<bool> used(program.slots.size(), false);
  for (const Step& step : program.steps) {
    for (const Access& access : accesses(step.operation))
      used[static_cast<std::size_t>(access.view.slot)] = true;
  }
  std::int64_t bytes = 0;
  for (std::size_t slot = 0; slot < used.size(); ++slot) {
    if (program.slots[slot].role != Role::scratch) continue;
    const bool empty = slot_bytes(program.slots[slot], shapes) == 0;
    if (!used[slot] && !empty) {
      throw Verdict{Fault::malformed, concat("rank ", program.rank, ": nothing uses scratch slot ",
                                             program.slots[slot].name)};
    }
    bytes += slot_bytes(program.slots[slot], shapes);
  }
  return bytes;
}

// ---- 1. hazards
// -----------------------------------------------------------------------------------------

/// The accesses of one slot so far. Long views are few; short ones, such as the parts that arrive
/// from many ranks, are found by their rows.
class SlotHistory {
 public:
  struct Past {
    View view;
    bool write;
    int step;
  };
  explicit SlotHistory(std::int64_t slot_rows) : short_rows_(slot_rows / 8) {}

  template <class Visit>
  void for_overlapping(const View& view, const Visit& visit) const {
    if (view.rows() == 0) return;
    for (const Past& past : long_) {
      if (overlaps(past.view, view)) visit(past);
    }
    const auto end = short_.lower_bound(view.row_end);
    for (auto at = short_.upper_bound(view.row_begin - short_rows_); at != end; ++at) {
      if (overlaps(at->second.view, view)) visit(at->second);
    }
  }
  /// A write orders whatever it covers: later accesses need to be ordered after it alone.
  void add(const Past& past) {
    if (past.write) {
      const auto covered = [&](const Past& p) { return covers(past.view, p.view); };
      std::erase_if(long_, covered);
      const auto end = short_.lower_bound(past.view.row_end);
      for (auto at = short_.lower_bound(past.view.row_begin); at != end;)
        at = covered(at->second) ? short_.erase(at) : std::next(at);
    }
    if (past.view.rows() > short_rows_) {
      long_.push_back(past);
    } else {
      short_.emplace(past.view.row_begin, past);
    }
  }

 private:
  std::int64_t short_rows_;
  std::vector<Past> long_;
  std::multimap<std::int64_t, Past> short_;  // by first row
};

/// Recomputes what is ordered from streams and waits alone; shares nothing with the builder's
/// derivation.
void check_hazards(const Program& program, int channels) {
  const auto streams = static_cast<std::size_t>(channels) + 1;
  // Of each step, the latest step of each stream before or at it.
  std::vector<int> done(program.steps.size() * streams, -1);
  std::vector<int> last(streams, -1);
  std::vector<SlotHistory> history;
  for (const Slot& slot : program.slots) history.emplace_back(slot.rows);
  for (int index = 0; index < static_cast<int>(program.steps.size()); ++index) {
    const Step& step = program.steps[static_cast<std::size_t>(index)];
    const std::span clock(done.data() + static_cast<std::size_t>(index) * streams, streams);
    const auto after = [&](int earlier) {
      for (std::size_t s = 0; s < streams; ++s)
        clock[s] = std::max(clock[s], done[static_cast<std::size_t>(earlier) * streams + s]);
    };
    for (const int earlier : step.waits) after(earlier);
    const int before = last[static_cast<std::size_t>(step.stream)];
    if (before >= 0) after(before);
    const std::vector<Access> all = accesses(step.operation);
    for (const Access& access : all) {
      const auto require_ordered = [&](const SlotHistory::Past& past) {
        if (!access.write && !past.write) return;
        const int on = program.steps[static_cast<std::size_t>(past.step)].stream;
        if (clock[static_cast<std::size_t>(on)] < past.step) {
          throw Verdict{
              Fault::hazard,
              concat(place(program, index), " and ", place(program, past.step), " both use ",
                     show(program, access.view), " and nothing orders them")};
        }
      };
      history[static_cast<std::size_t>(access.view.slot)].for_overlapping(access.view,
                                                                          require_ordered);
    }
    for (const Access& access : all) {
      if (program.slots[static_cast<std::size_t>(access.view.slot)].role == Role::input) continue;
      history[static_cast<std::size_t>(access.view.slot)].add({access.view, access.write, index});
    }
    clock[static_cast<std::size_t>(step.stream)] = index;
    last[static_cast<std::size_t>(step.stream)] = index;
  }
}

// ---- 2. run
// ---------------------------------------------------------------------------------------------

/// Runs all ranks' programs over shadow values.
class Rehearsal {
 public:
  Rehearsal(const Schedule& schedule, const attention::HeadMasks& masks)
      : units_(shadow_units(schedule, masks)), expected_(schedule, masks, units_) {
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
    if (send.message->views.size() != receive.message->views.size())
      differ("different numbers of views");
    for (std::size_t v = 0; v < send.message->views.size(); ++v) {
      const View& a = send.message->views[v];
      const View& b = receive.message->views[v];
      const Slot& source = from.program.slots[static_cast<std::size_t>(a.slot)];
      const Slot& target = to.program.slots[static_cast<std::size_t>(b.slot)];
      if (source.kind != target.kind || a.rows() != b.rows() || a.heads() != b.heads()) {
        differ(concat(show(from.program, a), " does not fit ", show(to.program, b)));
      }
      to.shadow.receive(b, from.shadow, a, receive.step);
    }
    for (const Posted& side : {send, receive}) {
      Rank& r = ranks_[static_cast<std::size_t>(side.rank)];
      const auto i = static_cast<std::size_t>(side.step);
      if (--r.open_messages[i] == 0) {
        r.complete[i] = true;
        wake(side.rank);
      }
    }
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
  std::vector<int> free_;  // numbers in waiting_
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

Verdict verify(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout) {
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
    FormCheck form(schedule);
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const Program& program = schedule.programs[rank];
      if (program.rank != static_cast<int>(rank))
        return {Fault::malformed, concat("program ", rank, " is of rank ", program.rank)};
      check_bound_slots(program, schedule, layout);
      form.program(program);
      check_hazards(program, schedule.channels);
      proven.peak_scratch_bytes =
          std::max(proven.peak_scratch_bytes, scratch_bytes(program, schedule.shapes));
    }
    Rehearsal run(schedule, masks);
    run.all();
  } catch (const Verdict& verdict) {
    return verdict;
  }
  return proven;
}

}  // namespace longhaul::parallel
