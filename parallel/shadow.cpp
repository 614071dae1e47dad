#include "parallel/shadow.h"

#include <algorithm>
#include <numeric>

#include "parallel/verifier.h"
#include "runtime/error.h"

namespace longhaul::parallel {
namespace {

using runtime::concat;

/// A random odd number for a (token, cell) of one side.
std::uint64_t weight(bool key_side, std::int64_t id) {
  std::uint64_t x = static_cast<std::uint64_t>(id) * 2 + (key_side ? 1 : 0) + 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return (x ^ (x >> 31)) | 1;
}

int cells(int heads, int unit) { return heads / unit; }

/// The key/value cell that a query cell attends to, in global numbers.
int kv_cell_of(int q_cell, const ShadowUnits& units, const Shapes& shapes) {
  return q_cell * units.q * shapes.kv_heads / shapes.heads / units.kv;
}

}  // namespace

ShadowUnits shadow_units(const Schedule& schedule, const attention::HeadMasks& masks) {
  ShadowUnits units{schedule.shapes.heads, schedule.shapes.kv_heads};
  for (const auto& group : masks.groups()) {
    units.q = std::gcd(units.q,
                       std::gcd(group.head_begin, std::min(group.head_end, schedule.shapes.heads)));
  }
  for (const Program& program : schedule.programs) {
    for (const Slot& slot : program.slots) {
      int& unit = is_key_side(slot.kind) ? units.kv : units.q;
      unit = std::gcd(unit, std::gcd(slot.heads, slot.first_head));
    }
    for (const Step& step : program.steps) {
      for (const Access& access : accesses(step.operation)) {
        const SlotKind kind = program.slots[static_cast<std::size_t>(access.view.slot)].kind;
        int& unit = is_key_side(kind) ? units.kv : units.q;
        unit = std::gcd(unit, std::gcd(access.view.head_begin, access.view.head_end));
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
  const int q_cells = cells(schedule.shapes.heads, units.q),
            kv_cells = cells(schedule.shapes.kv_heads, units.kv);
  queries_.assign(static_cast<std::size_t>(tokens * q_cells), 0);
  keys_.assign(static_cast<std::size_t>(tokens * kv_cells), 0);
  std::vector<std::uint64_t> prefix(static_cast<std::size_t>(tokens) + 1),
      change(static_cast<std::size_t>(tokens) + 1);
  for (int q_cell = 0; q_cell < q_cells; ++q_cell) {
    const int kv_cell = kv_cell_of(q_cell, units, schedule.shapes);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto i = static_cast<std::size_t>(t);
      prefix[i + 1] = prefix[i] + weight(true, t * kv_cells + kv_cell);
    }
    std::fill(change.begin(), change.end(), 0);
    for (const Slice& slice : masks.of(q_cell * units.q).slices()) {
      for (std::int64_t q = slice.q_begin; q < slice.q_end; ++q) {
        const std::int64_t begin = slice.key_begin(q), end = slice.key_end(q);
        if (begin >= end) continue;
        const std::int64_t id = q * q_cells + q_cell;
        queries_[static_cast<std::size_t>(id)] +=
            prefix[static_cast<std::size_t>(end)] - prefix[static_cast<std::size_t>(begin)];
        change[static_cast<std::size_t>(begin)] += weight(false, id);
        change[static_cast<std::size_t>(end)] -= weight(false, id);
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
      cells_(program.slots.size()) {
  for (std::size_t index = 0; index < cells_.size(); ++index) {
    const Slot& s = program.slots[index];
    Cells& c = cells_[index];
    c.per_row = cells(s.heads, is_key_side(s.kind) ? units_.kv : units_.q);
    if (s.role == Role::input) {
      c.id = declared_ids(s);
    } else {
      c.id.assign(static_cast<std::size_t>(s.rows * c.per_row), -1);
    }
    if (is_accumulator(s.kind)) c.sum.assign(c.id.size(), 0);
  }
}

std::vector<std::int64_t> Shadow::declared_ids(const Slot& s) const {
  const bool key_side = is_key_side(s.kind);
  const int u = key_side ? units_.kv : units_.q;
  const int all = cells(key_side ? schedule_.shapes.kv_heads : schedule_.shapes.heads, u);
  std::vector<std::int64_t> ids;
  for (const Run& run : s.tokens) {
    for (std::int64_t i = 0; i < run.count; ++i) {
      for (int cell = 0; cell < cells(s.heads, u); ++cell) {
        ids.push_back((run.first + i * run.stride) * all + s.first_head / u + cell);
      }
    }
  }
  if (ids.size() != static_cast<std::size_t>(s.rows * cells(s.heads, u))) {
    throw Verdict{Fault::malformed, concat("rank ", program_.rank, ": slot ", s.name,
                                           " declares other than its ", s.rows, " rows")};
  }
  return ids;
}

int Shadow::unit(const View& view) const {
  return is_key_side(slot(view.slot).kind) ? units_.kv : units_.q;
}

Shadow::Rect Shadow::rect(const View& view) const {
  return {view.row_begin, view.row_end, view.head_begin / unit(view), view.head_end / unit(view)};
}

Shadow::Place Shadow::place(const View& view) const {
  const std::int64_t per_row = cells_[static_cast<std::size_t>(view.slot)].per_row;
  return {view.row_begin * per_row + view.head_begin / unit(view), per_row};
}

void Shadow::require_defined(const View& view, int step) const {
  const Cells& c = cells_[static_cast<std::size_t>(view.slot)];
  const Rect r = rect(view);
  const Place at = place(view);
  for (std::int64_t row = 0; row < view.rows(); ++row) {
    for (int cell = 0; cell < r.end - r.begin; ++cell) {
      if (c.id[at.at(row, cell)] < 0) {
        throw Verdict{
            Fault::undefined,
            concat("rank ", program_.rank, ", step ", step, " uses row ", view.row_begin + row,
                   " of ", slot(view.slot).name, ", which nothing has written")};
      }
    }
  }
}

/// Keys, and values of the same tokens and heads.
void Shadow::require_keys(const View& kv, const std::optional<View>& v, int step) const {
  require_defined(kv, step);
  if (!v) return;
  require_defined(*v, step);
  const Rect r = rect(kv);
  const Cells &keys = cells_[static_cast<std::size_t>(kv.slot)],
              &values = cells_[static_cast<std::size_t>(v->slot)];
  const Place key_at = place(kv), value_at = place(*v);
  for (std::int64_t row = 0; row < kv.rows(); ++row) {
    for (int cell = 0; cell < r.end - r.begin; ++cell) {
      if (keys.id[key_at.at(row, cell)] != values.id[value_at.at(row, cell)]) {
        throw Verdict{Fault::misplaced,
                      concat("rank ", program_.rank, ", step ", step, " pairs row ", row,
                             " of the keys with values of another token or head")};
      }
    }
  }
}

/// A write gives the rows the ids of `like` and sum 0; an add demands that they have them already.
void Shadow::prepare_accumulator(const View& view, const View& like, Mode mode, int step) {
  if (mode == Mode::add) require_defined(view, step);
  Cells& c = cells_[static_cast<std::size_t>(view.slot)];
  const Cells& other = cells_[static_cast<std::size_t>(like.slot)];
  const Rect r = rect(view);
  const Place at = place(view), like_at = place(like);
  for (std::int64_t row = 0; row < view.rows(); ++row) {
    for (int cell = 0; cell < r.end - r.begin; ++cell) {
      const std::size_t i = at.at(row, cell);
      const std::int64_t id = other.id[like_at.at(row, cell)];
      if (mode == Mode::write) {
        c.id[i] = id;
        c.sum[i] = 0;
      } else if (c.id[i] != id) {
        throw Verdict{
            Fault::misplaced,
            concat("rank ", program_.rank, ", step ", step, " adds to row ", view.row_begin + row,
                   " of ", slot(view.slot).name, ", which belongs to another token or head")};
      }
    }
  }
}

/// into[q] += the weights of the keys that each query row sees: two prefix-sum look-ups a band and
/// row.
void Shadow::add_visible_keys(const View& q, const View& kv, const std::vector<Slice>& bands,
                              const View& into, int step) {
  const Cells& queries = cells_[static_cast<std::size_t>(q.slot)];
  const Cells& keys = cells_[static_cast<std::size_t>(kv.slot)];
  Cells& sums = cells_[static_cast<std::size_t>(into.slot)];
  const Rect q_rect = rect(q), kv_rect = rect(kv);
  const int q_all = cells(schedule_.shapes.heads, units_.q),
            kv_all = cells(schedule_.shapes.kv_heads, units_.kv);
  const int kv_cells = kv_rect.end - kv_rect.begin;
  const Place q_at = place(q), kv_at = place(kv), into_at = place(into);
  std::vector<std::vector<std::uint64_t>> prefix(static_cast<std::size_t>(kv_cells));
  for (int cell = 0; cell < kv_cells; ++cell) {
    auto& p = prefix[static_cast<std::size_t>(cell)];
    p.assign(1, 0);
    p.reserve(static_cast<std::size_t>(kv.rows()) + 1);
    for (std::int64_t row = 0; row < kv.rows(); ++row)
      p.push_back(p.back() + weight(true, keys.id[kv_at.at(row, cell)]));
  }
  for (int cell = 0; cell < q_rect.end - q_rect.begin; ++cell) {
    const int kv_cell =
        cell * units_.q * kv.heads() / q.heads() / units_.kv;  // as the kernel pairs heads
    const auto& p = prefix[static_cast<std::size_t>(kv_cell)];
    for (const Slice& band : bands) {
      for (std::int64_t row = band.q_begin; row < band.q_end; ++row) {
        const std::int64_t begin = band.key_begin(row), end = band.key_end(row);
        if (begin >= end) continue;
        const std::int64_t q_id = queries.id[q_at.at(row, cell)];
        const std::int64_t kv_id = keys.id[kv_at.at(begin, kv_cell)];
        if (kv_cell_of(static_cast<int>(q_id % q_all), units_, schedule_.shapes) !=
            kv_id % kv_all) {
          throw Verdict{Fault::misplaced,
                        concat("rank ", program_.rank, ", step ", step,
                               " pairs query heads with key/value heads of another group")};
        }
        sums.sum[into_at.at(row, cell)] +=
            p[static_cast<std::size_t>(end)] - p[static_cast<std::size_t>(begin)];
      }
    }
  }
}

/// into[k] += the weights of the queries that see each key row, through a difference array.
void Shadow::add_visible_queries(const View& q, const View& kv, const std::vector<Slice>& bands,
                                 const View& into) {
  const Cells& queries = cells_[static_cast<std::size_t>(q.slot)];
  Cells& sums = cells_[static_cast<std::size_t>(into.slot)];
  const Rect q_rect = rect(q);
  const Place q_at = place(q), into_at = place(into);
  std::vector<std::uint64_t> change;
  for (int cell = 0; cell < q_rect.end - q_rect.begin; ++cell) {
    const int kv_cell = cell * units_.q * kv.heads() / q.heads() / units_.kv;
    change.assign(static_cast<std::size_t>(kv.rows()) + 1, 0);
    for (const Slice& band : bands) {
      for (std::int64_t row = band.q_begin; row < band.q_end; ++row) {
        const std::int64_t begin = band.key_begin(row), end = band.key_end(row);
        if (begin >= end) continue;
        const std::uint64_t w = weight(false, queries.id[q_at.at(row, cell)]);
        change[static_cast<std::size_t>(begin)] += w;
        change[static_cast<std::size_t>(end)] -= w;
      }
    }
    std::uint64_t sum = 0;
    for (std::int64_t row = 0; row < kv.rows(); ++row) {
      sum += change[static_cast<std::size_t>(row)];
      sums.sum[into_at.at(row, kv_cell)] += sum;
    }
  }
}

void Shadow::apply(const Attend& a, int step) {
  require_defined(a.q, step);
  require_keys(a.kv, a.v, step);
  prepare_accumulator(a.partial, a.q, a.mode, step);
  add_visible_keys(a.q, a.kv, a.bands, a.partial, step);
}

void Shadow::apply(const AttendBackward& a, int step) {
  require_defined(a.q_bundle, step);
  require_keys(a.kv, a.v, step);
  prepare_accumulator(a.dq, a.q_bundle, a.dq_mode, step);
  prepare_accumulator(a.dkv, a.kv, a.dkv_mode, step);
  add_visible_keys(a.q_bundle, a.kv, a.bands, a.dq, step);
  add_visible_queries(a.q_bundle, a.kv, a.bands, a.dkv);
}

void Shadow::apply(const Accumulate& a, int step) {
  require_defined(a.src, step);
  prepare_accumulator(a.dst, a.src, Mode::add, step);
  const Cells& from = cells_[static_cast<std::size_t>(a.src.slot)];
  Cells& to = cells_[static_cast<std::size_t>(a.dst.slot)];
  const Rect r = rect(a.dst);
  const Place from_at = place(a.src), to_at = place(a.dst);
  for (std::int64_t row = 0; row < a.dst.rows(); ++row) {
    for (int cell = 0; cell < r.end - r.begin; ++cell)
      to.sum[to_at.at(row, cell)] += from.sum[from_at.at(row, cell)];
  }
}

void Shadow::apply(const Copy& copy, int step) { receive(copy.dst, *this, copy.src, step); }

void Shadow::run(int step) {
  std::visit([&](const auto& operation) { apply(operation, step); },
             program_.steps[static_cast<std::size_t>(step)].operation);
}

void Shadow::receive(const View& view, const Shadow& sender, const View& sent, int step) {
  sender.require_defined(sent, step);
  const Cells& from = sender.cells_[static_cast<std::size_t>(sent.slot)];
  Cells& to = cells_[static_cast<std::size_t>(view.slot)];
  const Rect r = rect(view);
  const Place at = place(view), sent_at = sender.place(sent);
  for (std::int64_t row = 0; row < view.rows(); ++row) {
    for (int cell = 0; cell < r.end - r.begin; ++cell) {
      const std::size_t target = at.at(row, cell), source = sent_at.at(row, cell);
      to.id[target] = from.id[source];
      if (!to.sum.empty()) to.sum[target] = from.sum[source];
    }
  }
}

void Shadow::check_outputs() const {
  for (std::size_t index = 0; index < cells_.size(); ++index) {
    const Slot& s = program_.slots[index];
    if (s.role != Role::output) continue;
    const View all{static_cast<int>(index), 0, s.rows, 0, s.heads};
    require_defined(all, -1);
    const std::vector<std::int64_t> want = declared_ids(s);
    const Cells& have = cells_[index];
    for (std::size_t i = 0; i < have.id.size(); ++i) {
      const auto row = [&] { return static_cast<std::int64_t>(i) / have.per_row; };
      if (have.id[i] != want[i]) {
        throw Verdict{Fault::misplaced,
                      concat("rank ", program_.rank, ": row ", row(), " of output ", s.name,
                             " holds another token or head than declared")};
      }
      if (have.sum[i] != expected_.of(is_key_side(s.kind), have.id[i])) {
        throw Verdict{Fault::coverage,
                      concat("rank ", program_.rank, ": row ", row(), " of output ", s.name,
                             " misses visible pairs or counts some twice")};
      }
    }
  }
}

}  // namespace longhaul::parallel
