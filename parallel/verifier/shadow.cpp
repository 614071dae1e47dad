#include "parallel/verifier/shadow.h"

#include <algorithm>
#include <numeric>

#include "parallel/verifier/linear_shadow.h"

namespace longhaul::parallel {

using runtime::concat;

std::uint64_t shadow_weight(Side side, std::int64_t id) {
  std::uint64_t x =
      static_cast<std::uint64_t>(id) * 2 + (side == Side::key ? 1 : 0) + 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return (x ^ (x >> 31)) | 1;
}

int kv_cell_of(int q_cell, const ShadowUnits& units, const Shapes& shapes) {
  return q_cell * units.q * shapes.kv_heads / shapes.heads / units.kv;
}

ShadowUnits shadow_units(const Schedule& schedule, const attention::HeadMasks& masks) {
  ShadowUnits units{schedule.shapes.heads, schedule.shapes.kv_heads};
  for (const auto& group : masks.groups()) {
    units.q = std::gcd(units.q,
                       std::gcd(group.head_begin, std::min(group.head_end, schedule.shapes.heads)));
  }
  const auto refine = [&](Side side, int begin, int end) {
    int& unit = side == Side::key ? units.kv : units.q;
    unit = std::gcd(unit, std::gcd(begin, end));
  };
  for (const Program& program : schedule.programs) {
    for (const Slot& slot : program.slots) refine(slot.record.side, slot.heads, slot.first_head);
    for (const Step& step : program.steps) {
      for (const Access& access : accesses(step.operation)) {
        refine(program.slot(access.view).record.side, access.view.head_begin, access.view.head_end);
      }
    }
  }
  const int group = schedule.shapes.heads / schedule.shapes.kv_heads;
  units.q = std::gcd(units.q, units.kv * group);  // a query cell meets one key/value cell
  return units;
}

ExpectedSums::ExpectedSums(const Schedule& schedule, const attention::HeadMasks& masks,
                           const Layout& layout, const ShadowUnits& units) {
  const auto tokens = masks.tokens();
  const int q_cells = schedule.shapes.heads / units.q,
            kv_cells = schedule.shapes.kv_heads / units.kv;
  queries_.assign(static_cast<std::size_t>(tokens * q_cells), 0);
  keys_.assign(static_cast<std::size_t>(tokens * kv_cells), 0);
  if (schedule.shapes.linear) {
    states_ = std::make_unique<const ExpectedStates>(schedule, masks, layout, q_cells);
    add_states(schedule, units);
  } else {
    add_visible(schedule, masks, units);
  }
}

ExpectedSums::~ExpectedSums() = default;

void ExpectedSums::add_states(const Schedule& schedule, const ShadowUnits& units) {
  const bool backward = schedule.direction == Direction::backward;
  const int q_cells = states_->cells(), kv_cells = schedule.shapes.kv_heads / units.kv;
  for (std::size_t id = 0; id < queries_.size(); ++id) {
    const auto cell = static_cast<int>(id % static_cast<std::size_t>(q_cells));
    queries_[id] = states_->row(backward, static_cast<std::int64_t>(id));
    keys_[id / static_cast<std::size_t>(q_cells) * static_cast<std::size_t>(kv_cells) +
          static_cast<std::size_t>(kv_cell_of(cell, units, schedule.shapes))] += queries_[id];
  }
}

void ExpectedSums::add_visible(const Schedule& schedule, const attention::HeadMasks& masks,
                               const ShadowUnits& units) {
  const auto tokens = masks.tokens();
  const int q_cells = schedule.shapes.heads / units.q,
            kv_cells = schedule.shapes.kv_heads / units.kv;
  std::vector<std::uint64_t> prefix(static_cast<std::size_t>(tokens) + 1),
      change(static_cast<std::size_t>(tokens) + 1);
  for (int q_cell = 0; q_cell < q_cells; ++q_cell) {
    const int kv_cell = kv_cell_of(q_cell, units, schedule.shapes);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto i = static_cast<std::size_t>(t);
      prefix[i + 1] = prefix[i] + shadow_weight(Side::key, t * kv_cells + kv_cell);
    }
    std::fill(change.begin(), change.end(), 0);
    for (const Slice& slice : masks.of(q_cell * units.q).slices()) {
      for (std::int64_t q = slice.q_begin; q < slice.q_end; ++q) {
        const std::int64_t begin = slice.key_begin(q), end = slice.key_end(q);
        if (begin >= end) continue;
        const std::int64_t id = q * q_cells + q_cell;
        const std::uint64_t weight = shadow_weight(Side::query, id);
        queries_[static_cast<std::size_t>(id)] +=
            prefix[static_cast<std::size_t>(end)] - prefix[static_cast<std::size_t>(begin)];
        change[static_cast<std::size_t>(begin)] += weight;
        change[static_cast<std::size_t>(end)] -= weight;
      }
    }
    std::uint64_t sum = 0;
    for (std::int64_t t = 0; t < tokens; ++t) {
      sum += change[static_cast<std::size_t>(t)];
      keys_[static_cast<std::size_t>(t * kv_cells + kv_cell)] += sum;
    }
  }
}

namespace {
/// Kept by forward for this call.
bool is_given(const Slot& slot, const Schedule& schedule) {
  return slot.role == Role::saved && schedule.direction == Direction::backward;
}
}  // namespace

Shadow::Shadow(const Program& program, const Schedule& schedule, const ExpectedSums& expected,
               const ShadowUnits& units)
    : program_(program),
      schedule_(schedule),
      expected_(expected),
      units_(units),
      slots_(program.slots.size()) {
  for (std::size_t index = 0; index < slots_.size(); ++index) {
    const Slot& s = program.slots[index];
    Slots& own = slots_[index];
    own.per_row = s.heads / units_.of(s.record.side);
    const bool state = s.record.side == Side::state;
    own.id.assign(static_cast<std::size_t>(s.rows * own.per_row), -1);
    if (s.record.accumulates() || s.role == Role::output || state) own.sum.assign(own.id.size(), 0);
    if (s.record.kind == "transition") own.transposed.assign(own.id.size(), 0);
    if (s.role == Role::input || is_given(s, schedule)) define_input(s, own);
  }
}

void Shadow::define_input(const Slot& s, Slots& own) const {
  own.id = declared_ids(s);
  if (s.record.side != Side::state) return;
  for (std::size_t i = 0; i < own.id.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / own.per_row;
    const auto cell = static_cast<int>(own.id[i] % cells_of_all(Side::state));
    if (s.record.kind == "state") {
      own.sum[i] = state_number(s, row, cell);
      continue;
    }
    // A transition: the product of its run's tokens.
    const std::int64_t rows_of_one = s.rows / std::ssize(s.tokens);
    const Run& run = s.tokens[static_cast<std::size_t>(row / rows_of_one)];
    own.sum[i] = own.transposed[i] = 1;
    for (std::int64_t t = run.first; t < run.first + run.count; ++t) {
      const std::int64_t id = t * states().cells() + cell;
      own.sum[i] *= token_map(states().recurrence(), false, id).tau;
      own.transposed[i] *= token_map(states().recurrence(), true, id).tau;
    }
  }
}

std::uint64_t Shadow::state_number(const Slot& s, std::int64_t row, int cell) const {
  const std::int64_t state_rows = shapes().value_dim;
  const std::int64_t token = s.tokens[static_cast<std::size_t>(row / state_rows)].first;
  return state_row_weight(row % state_rows) *
         states().state(s.record.fields.front().name, token, cell);
}

std::vector<std::int64_t> Shadow::declared_ids(const Slot& s) const {
  const int unit = units_.of(s.record.side), cells = s.heads / unit,
            all = cells_of_all(s.record.side);
  std::vector<std::int64_t> ids;
  if (s.record.side == Side::state) {  // the rows of one state, or transition, after another
    const auto all_of_them = std::ssize(s.tokens);
    const std::int64_t rows_of_one = all_of_them == 0 ? 0 : s.rows / all_of_them;
    for (std::int64_t row = 0; row < all_of_them * rows_of_one; ++row) {
      for (int cell = 0; cell < cells; ++cell)
        ids.push_back(row % rows_of_one * all + s.first_head / unit + cell);
    }
  }
  for (const Run& run : s.record.side == Side::state ? std::vector<Run>() : s.tokens) {
    for (std::int64_t i = 0; i < run.count; ++i) {
      for (int cell = 0; cell < cells; ++cell)
        ids.push_back((run.first + i * run.stride) * all + s.first_head / unit + cell);
    }
  }
  if (ids.size() != static_cast<std::size_t>(s.rows * cells)) {
    throw Verdict{Fault::malformed, concat("rank ", program_.rank, ": slot ", s.name,
                                           " declares other than its ", s.rows, " rows")};
  }
  return ids;
}

ShadowCells Shadow::cells(const View& view) {
  Slots& own = slots_[static_cast<std::size_t>(view.slot)];
  const int unit = units_.of(slot(view.slot).record.side);
  const std::int64_t first = view.row_begin * own.per_row + view.head_begin / unit;
  return {view.rows(),
          view.heads() / unit,
          own.per_row,
          own.id.data() + first,
          own.sum.empty() ? nullptr : own.sum.data() + first,
          own.transposed.empty() ? nullptr : own.transposed.data() + first};
}

void Shadow::require_defined(const View& view) {
  const ShadowCells own = cells(view);
  for (std::int64_t row = 0; row < own.rows; ++row) {
    for (int cell = 0; cell < own.per_view; ++cell) {
      if (own.id(row, cell) < 0) {
        fail(Fault::undefined, "uses row ", view.row_begin + row, " of ", slot(view.slot).name,
             ", which nothing has written");
      }
    }
  }
}

void Shadow::prepare_accumulator(const View& view, const View& like, Mode mode) {
  if (mode == Mode::add) require_defined(view);
  const ShadowCells own = cells(view), other = cells(like);
  for (std::int64_t row = 0; row < own.rows; ++row) {
    for (int cell = 0; cell < own.per_view; ++cell) {
      if (mode == Mode::write) {
        own.id(row, cell) = other.id(row, cell);
        own.sum(row, cell) = 0;
      } else if (own.id(row, cell) != other.id(row, cell)) {
        fail(Fault::misplaced, "adds to row ", view.row_begin + row, " of ", slot(view.slot).name,
             ", which belongs to another token or head");
      }
    }
  }
}

void Shadow::receive(const View& view, Shadow& sender, const View& sent) {
  sender.require_defined(sent);
  const ShadowCells from = sender.cells(sent), to = cells(view);
  for (std::int64_t row = 0; row < to.rows; ++row) {
    for (int cell = 0; cell < to.per_view; ++cell) {
      to.id(row, cell) = from.id(row, cell);
      if (to.sums != nullptr && from.sums != nullptr) to.sum(row, cell) = from.sum(row, cell);
      if (to.transposes != nullptr) to.transposed(row, cell) = from.transposed(row, cell);
    }
  }
}

void Shadow::run(int step) {
  step_ = step;
  std::visit([&](const auto& operation) { rehearse(operation, *this); },
             program_.steps[static_cast<std::size_t>(step)].operation);
}

void Shadow::deliver(const View& view, int step, Shadow& sender, const View& sent, int send_step) {
  step_ = step;
  sender.step_ = send_step;
  receive(view, sender, sent);
}

void Shadow::check_outputs() {
  for (std::size_t index = 0; index < slots_.size(); ++index) {
    const Slot& s = program_.slots[index];
    const bool kept = s.role == Role::saved && !is_given(s, schedule_);
    if (s.role != Role::output && !kept) continue;
    require_defined({static_cast<int>(index), 0, s.rows, 0, s.heads});
    const std::vector<std::int64_t> want = declared_ids(s);
    const Slots& have = slots_[index];
    for (std::size_t i = 0; i < have.id.size(); ++i) {
      const auto row = [&] { return static_cast<std::int64_t>(i) / have.per_row; };
      if (have.id[i] != want[i]) {
        throw Verdict{Fault::misplaced, concat("rank ", program_.rank, ": row ", row(), " of ",
                                               kept ? "kept " : "output ", s.name,
                                               " holds another token or head than declared")};
      }
      if (!kept && have.sum[i] != expected_of(s, row(), have.id[i])) {
        throw Verdict{Fault::coverage,
                      concat("rank ", program_.rank, ": row ", row(), " of output ", s.name,
                             expected_.states() != nullptr
                                 ? " misses tokens, has some twice or in another order"
                                 : " misses visible pairs or counts some twice")};
      }
    }
  }
}

std::uint64_t Shadow::expected_of(const Slot& s, std::int64_t row, std::int64_t id) const {
  if (s.record.kind == "state")
    return state_number(s, row, static_cast<int>(id % cells_of_all(Side::state)));
  if (s.record.kind == "transition") {
    const Run& run = s.tokens[static_cast<std::size_t>(row / (s.rows / std::ssize(s.tokens)))];
    std::uint64_t product = 1;
    for (std::int64_t t = run.first; t < run.first + run.count; ++t)
      product *= token_map(states().recurrence(), false,
                           t * states().cells() + id % cells_of_all(Side::state))
                     .tau;
    return product;
  }
  if (s.record.kind == "dslopes") {  // what each of the rank's tokens adds
    std::uint64_t sum = 0;
    for (const Slot& other : program_.slots) {
      if (other.name != "v") continue;
      for (const Run& run : other.tokens) {
        for (std::int64_t i = 0; i < run.count; ++i)
          sum += token_map(states().recurrence(), true, run[i] * states().cells() + id).mu;
      }
    }
    return sum;
  }
  return expected_.of(s.record.side, id);
}

}  // namespace longhaul::parallel
