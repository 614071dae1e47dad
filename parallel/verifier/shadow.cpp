#include "parallel/verifier/shadow.h"

#include <algorithm>
#include <numeric>

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
                           const ShadowUnits& units) {
  const auto tokens = masks.tokens();
  const int q_cells = schedule.shapes.heads / units.q,
            kv_cells = schedule.shapes.kv_heads / units.kv;
  queries_.assign(static_cast<std::size_t>(tokens * q_cells), 0);
  keys_.assign(static_cast<std::size_t>(tokens * kv_cells), 0);
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
    if (s.role == Role::input) {
      own.id = declared_ids(s);
    } else {
      own.id.assign(static_cast<std::size_t>(s.rows * own.per_row), -1);
    }
    if (s.record.accumulates() || s.role == Role::output) own.sum.assign(own.id.size(), 0);
  }
}

std::vector<std::int64_t> Shadow::declared_ids(const Slot& s) const {
  const int unit = units_.of(s.record.side), cells = s.heads / unit,
            all = cells_of_all(s.record.side);
  std::vector<std::int64_t> ids;
  for (const Run& run : s.tokens) {
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
  return {view.rows(), view.heads() / unit, own.per_row, own.id.data() + first,
          own.sum.empty() ? nullptr : own.sum.data() + first};
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
    if (s.role != Role::output) continue;
    require_defined({static_cast<int>(index), 0, s.rows, 0, s.heads});
    const std::vector<std::int64_t> want = declared_ids(s);
    const Slots& have = slots_[index];
    for (std::size_t i = 0; i < have.id.size(); ++i) {
      const auto row = [&] { return static_cast<std::int64_t>(i) / have.per_row; };
      if (have.id[i] != want[i]) {
        throw Verdict{Fault::misplaced,
                      concat("rank ", program_.rank, ": row ", row(), " of output ", s.name,
                             " holds another token or head than declared")};
      }
      if (have.sum[i] != expected_.of(s.record.side, have.id[i])) {
        throw Verdict{Fault::coverage,
                      concat("rank ", program_.rank, ": row ", row(), " of output ", s.name,
                             " misses visible pairs or counts some twice")};
      }
    }
  }
}

}  // namespace longhaul::parallel
