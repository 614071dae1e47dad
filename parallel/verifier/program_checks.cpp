#include "parallel/verifier/program_checks.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <span>

#include "parallel/verifier/form.h"
#include "runtime/error.h"

namespace longhaul::parallel {

using runtime::concat;

namespace {

/// A slot that the caller binds.
struct Bound {
  std::string_view name;
  Record record;
  Role role;
  int heads;
  std::int64_t rows;
  std::vector<Run> tokens;
};

/// What a rank of a call has, as its slots declare it.
class BoundSlots {
 public:
  BoundSlots(const Program& program, const Schedule& schedule, const Layout& layout)
      : program_(program), shapes_(schedule.shapes), layout_(layout) {}

  bool has(std::string_view name) const {
    return std::ranges::find(program_.slots, name, &Slot::name) != program_.slots.end();
  }
  /// With the rank's rows.
  void tokens(std::string_view name, const Record& record, Role role) {
    add(name, record, role, layout_.rows(program_.rank), layout_.runs(program_.rank));
  }
  void add(std::string_view name, const Record& record, Role role, std::int64_t rows,
           std::vector<Run> of) {
    const int heads = record.side == Side::key ? shapes_.kv_heads : shapes_.heads;
    all_.push_back({name, record, role, heads, rows, std::move(of)});
  }
  /// `rows` rows for each token or run of `of`.
  void states(std::string_view name, const Record& record, Role role, std::int64_t rows,
              std::vector<Run> of) {
    const std::int64_t count = std::ssize(of);
    add(name, record, role, rows * count, std::move(of));
  }
  const std::vector<Bound>& all() const { return all_; }

 private:
  const Program& program_;
  const Shapes& shapes_;
  const Layout& layout_;
  std::vector<Bound> all_;
};

void expect_attention(const Schedule& schedule, BoundSlots& slots) {
  const AttentionRecords records(schedule.shapes);
  if (slots.has("kv")) {
    slots.tokens("kv", records.kv, Role::input);
  } else {
    slots.tokens("k", records.k, Role::input);
    slots.tokens("v", records.v, Role::input);
  }
  if (schedule.direction == Direction::forward) {
    slots.tokens("q", records.q, Role::input);
    slots.tokens("out", records.partial, Role::output);
  } else {
    if (slots.has("q")) {  // what else backward needs of a query comes apart from it
      slots.tokens("q", records.q, Role::input);
      slots.tokens("dout_bundle", records.dout_bundle, Role::input);
    } else {
      slots.tokens("q_bundle", records.q_bundle, Role::input);
    }
    slots.tokens("dq", records.dq, Role::output);
    slots.tokens("dkv", records.dkv, Role::output);
  }
}

/// Where a rank's states stand: from its runs, and the tokens at which documents begin.
struct RankStates {
  std::vector<Run> entering;   ///< the states that enter its runs
  std::vector<Run> through;    ///< its runs through which a state comes from one run to another
  std::vector<Run> beginning;  ///< sequences whose first token it holds
  std::vector<Run> ending;     ///< sequences whose last token it holds: the token behind
};

RankStates rank_states(const LinearCall& call, const Layout& layout, int rank,
                       const std::vector<std::int64_t>& starts) {
  RankStates states;
  const std::int64_t seq_len = layout.seq_len();
  for (const Run& whole : layout.runs(rank)) {
    const std::int64_t whole_end = whole.first + whole.count;
    for (std::int64_t first = whole.first; first < whole_end;) {
      const std::int64_t next_sequence = (first / seq_len + 1) * seq_len;
      const bool cut = call.initial_state || call.final_state || !call.recurrence.causal;
      const std::int64_t end = cut ? std::min(whole_end, next_sequence) : whole_end;
      const bool at_sequence = first % seq_len == 0, ends_sequence = end % seq_len == 0;
      if (at_sequence && call.initial_state) states.beginning.push_back({first, 0});
      if (ends_sequence && call.final_state) states.ending.push_back({end, 0});
      if (!call.recurrence.causal) {
        const std::int64_t sequence = first / seq_len * seq_len;
        if (states.entering.empty() || states.entering.back().first != sequence)
          states.entering.push_back({sequence, 0});
      } else {
        // A start at a sequence's first token is none where its state is given.
        const auto is_start = [&](std::int64_t token) {
          return std::ranges::binary_search(starts, token) &&
                 !(call.initial_state && token % seq_len == 0);
        };
        const bool linked = first % seq_len != 0 && !is_start(first),
                   links = end % seq_len != 0 && !is_start(end);
        if (linked) states.entering.push_back({first, 0});
        const auto inside = std::ranges::upper_bound(starts, first);
        const bool resets = is_start(first) || (inside != starts.end() && *inside < end);
        if (!resets && (linked || (at_sequence && call.initial_state)) &&
            (links || (ends_sequence && call.final_state)) && (linked || links))
          states.through.push_back({first, end - first});
      }
      first = end;
    }
  }
  return states;
}

void expect_linear(const Program& program, const Schedule& schedule,
                   const attention::HeadMasks& masks, const Layout& layout, BoundSlots& slots) {
  const LinearCall& call = *schedule.shapes.linear;
  const LinearRecords records(schedule.shapes);
  std::vector<std::int64_t> starts;  // of documents: a causal document is one slice
  for (const Slice& slice : masks.of(0).slices()) starts.push_back(slice.q_begin);
  const RankStates states = rank_states(call, layout, program.rank, starts);
  const bool forward = schedule.direction == Direction::forward;
  slots.tokens("qk", records.qk, Role::input);
  slots.tokens("v", records.v, Role::input);
  if (records.has_gate()) slots.tokens("gate", records.gate, Role::input);
  if (records.has_slopes()) slots.add("slopes", records.slopes, Role::input, 1, {{0, 1}});
  const auto state = [&](std::string_view name, const Record& record, Role role,
                         const std::vector<Run>& at) {
    slots.states(name, record, role, records.state_rows, at);
  };
  if (call.initial_state)
    state("initial_state", records.initial_state, Role::input, states.beginning);
  const Role kept = forward && !call.states_given ? Role::output : Role::input;
  state("states", records.state, kept, states.entering);
  if (slots.has("transitions"))  // a scheme may do without
    slots.states("transitions", records.transition, kept, records.transition_rows, states.through);
  if (forward) {
    slots.tokens("out", records.out, Role::output);
    if (call.final_state) state("final_state", records.final_state, Role::output, states.ending);
    return;
  }
  slots.tokens("dout", records.dout, Role::input);
  if (call.final_state) state("dfinal_state", records.dfinal_state, Role::input, states.ending);
  slots.tokens("dqk", records.dqk, Role::output);
  slots.tokens("dv", records.dv, Role::output);
  if (records.has_gate()) slots.tokens("dgate", records.dgate, Role::output);
  if (call.slopes_gradient) slots.add("dslopes", records.dslopes, Role::output, 1, {{0, 1}});
  if (call.initial_state)
    state("dinitial_state", records.dinitial_state, Role::output, states.beginning);
}

}  // namespace

void check_bound_slots(const Program& program, const Schedule& schedule,
                       const attention::HeadMasks& masks, const Layout& layout) {
  BoundSlots slots(program, schedule, layout);
  if (schedule.shapes.linear) {
    expect_linear(program, schedule, masks, layout, slots);
  } else {
    expect_attention(schedule, slots);
  }
  const auto refuse = [&](Fault fault, std::string_view slot, const char* why) {
    throw Verdict{fault, concat("rank ", program.rank, ": slot ", slot, " ", why)};
  };
  std::size_t bound = 0;
  for (const Slot& slot : program.slots)
    bound += slot.role == Role::input || slot.role == Role::output ? 1 : 0;
  for (const Bound& wanted : slots.all()) {
    const auto found = std::ranges::find_if(program.slots, [&](const Slot& slot) {
      return slot.name == wanted.name && slot.role == wanted.role && slot.record == wanted.record;
    });
    if (found == program.slots.end())
      refuse(Fault::malformed, wanted.name,
             "is missing, or made of something else, or has another role");
    if (found->heads != wanted.heads || found->first_head != 0 || found->rows != wanted.rows)
      refuse(Fault::malformed, wanted.name, "does not have all the rank's rows and heads");
    if (found->tokens != wanted.tokens)
      refuse(Fault::misplaced, wanted.name, "is declared as other tokens than the layout's");
  }
  if (bound != slots.all().size()) {
    throw Verdict{Fault::malformed, concat("rank ", program.rank, " has ", bound,
                                           " inputs and outputs; expected ", slots.all().size())};
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

// ---- loans

namespace {

/// A view on loan, on either side.
struct OpenLoan {
  View view;
  int peer;
};

[[noreturn]] void refuse_loan(const Program& program, int step, const View& view, const char* why) {
  throw Verdict{Fault::hazard, concat(place(program, step), ": ", show(program, view), " ", why)};
}

/// Takes the loan that a message ends out of those that are open.
void end_loan(std::vector<OpenLoan>& open, const Message& message, const Program& program, int step,
              const char* why_not) {
  const View& view = message.views.front();
  const auto found = std::ranges::find_if(
      open, [&](const OpenLoan& loan) { return loan.view == view && loan.peer == message.peer; });
  if (found == open.end()) refuse_loan(program, step, view, why_not);
  open.erase(found);
}

}  // namespace

void check_loans(const Program& program) {
  std::vector<OpenLoan> lent, borrowed;
  std::vector<bool> ever(program.slots.size(), false);
  for (int index = 0; index < static_cast<int>(program.steps.size()); ++index) {
    const Operation& operation = program.steps[static_cast<std::size_t>(index)].operation;
    const auto* transfer = std::get_if<Transfer>(&operation);
    static const std::vector<Message> kNone;
    const auto& sends = transfer == nullptr ? kNone : transfer->sends;
    const auto& receives = transfer == nullptr ? kNone : transfer->receives;
    for (const Message& message : receives) {
      if (message.passing != Passing::lend) continue;
      const View& view = message.views.front();
      if (ever[static_cast<std::size_t>(view.slot)])
        refuse_loan(program, index, view, "is lent to a second time");
      ever[static_cast<std::size_t>(view.slot)] = true;
      borrowed.push_back({view, message.peer});
    }
    for (const Access& access : accesses(operation)) {
      if (program.slot(access.view).role == Role::borrowed &&
          std::ranges::none_of(
              borrowed, [&](const OpenLoan& loan) { return loan.view.slot == access.view.slot; }))
        refuse_loan(program, index, access.view, "is used while nobody lends it");
      if (!access.write) continue;
      for (const OpenLoan& loan : lent) {
        if (overlaps(loan.view, access.view))
          refuse_loan(program, index, access.view, "is written, or given back, while it is lent");
      }
    }
    for (const Message& message : sends) {
      if (message.passing == Passing::lend) lent.push_back({message.views.front(), message.peer});
      if (message.passing == Passing::give_back)
        end_loan(borrowed, message, program, index, "is given back to a rank that did not lend it");
    }
    for (const Message& message : receives) {
      if (message.passing == Passing::give_back)
        end_loan(lent, message, program, index, "is given back, and was not lent to that rank");
    }
  }
  const int end = static_cast<int>(program.steps.size()) - 1;
  for (const auto* open : {&lent, &borrowed}) {
    if (!open->empty()) refuse_loan(program, end, open->front().view, "is never given back");
  }
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
