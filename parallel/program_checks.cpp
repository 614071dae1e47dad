#include "parallel/program_checks.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <span>
#include <tuple>

#include "parallel/builder.h"
#include "runtime/error.h"

namespace longhaul::parallel {

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

// ---- form
// ------------------------------------------------------------------------------------------------

namespace {

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

}  // namespace

void check_form(const Program& program, const Schedule& schedule) {
  FormCheck(schedule).program(program);
}

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

// ---- hazards
// -------------------------------------------------------------------------------------------------

namespace {

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

}  // namespace

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

}  // namespace longhaul::parallel
