#include "parallel/verifier/program_checks.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <span>

#include "parallel/verifier/form.h"
#include "runtime/error.h"

namespace longhaul::parallel {

using runtime::concat;

void check_bound_slots(const Program& program, const Schedule& schedule, const Layout& layout) {
  struct Bound {
    const char* name;
    const Record& record;
    Role role;
  };
  const bool forward = schedule.direction == Direction::forward;
  const AttentionRecords records(schedule.shapes);
  std::vector<Bound> expected;
  if (std::ranges::find(program.slots, "kv", &Slot::name) != program.slots.end()) {
    expected.push_back({"kv", records.kv, Role::input});
  } else {
    expected.push_back({"k", records.k, Role::input});
    expected.push_back({"v", records.v, Role::input});
  }
  if (forward) {
    expected.push_back({"q", records.q, Role::input});
    expected.push_back({"out", records.partial, Role::output});
  } else {
    expected.push_back({"q_bundle", records.q_bundle, Role::input});
    expected.push_back({"dq", records.dq, Role::output});
    expected.push_back({"dkv", records.dkv, Role::output});
  }
  const auto refuse = [&](Fault fault, const std::string& slot, const char* why) {
    throw Verdict{fault, concat("rank ", program.rank, ": slot ", slot, " ", why)};
  };
  std::size_t bound = 0;
  for (const Slot& slot : program.slots) bound += slot.role == Role::scratch ? 0 : 1;
  for (const Bound& wanted : expected) {
    const auto found = std::ranges::find_if(program.slots, [&](const Slot& slot) {
      return slot.name == wanted.name && slot.role == wanted.role && slot.record == wanted.record;
    });
    if (found == program.slots.end())
      refuse(Fault::malformed, wanted.name,
             "is missing, or made of something else, or has another role");
    const int heads =
        found->record.side == Side::key ? schedule.shapes.kv_heads : schedule.shapes.heads;
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

std::int64_t scratch_bytes(const Program& program) {
  std::vector<bool> used(program.slots.size(), false);
  for (const Step& step : program.steps) {
    for (const Access& access : accesses(step.operation))
      used[static_cast<std::size_t>(access.view.slot)] = true;
  }
  std::int64_t bytes = 0;
  for (std::size_t slot = 0; slot < used.size(); ++slot) {
    if (program.slots[slot].role != Role::scratch) continue;
    const std::int64_t own = slot_bytes(program.slots[slot]);
    if (!used[slot] && own > 0) {
      throw Verdict{Fault::malformed, concat("rank ", program.rank, ": nothing uses scratch slot ",
                                             program.slots[slot].name)};
    }
    bytes += own;
  }
  return bytes;
}

// ---- hazards

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
