#include "parallel/verifier/linear_shadow.h"

#include <algorithm>

namespace longhaul::parallel {

using attention::Decay;
using runtime::concat;

namespace {

std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

std::uint64_t random_number(std::uint64_t stream, std::int64_t id) {
  return mixed(mixed(stream * 0x9e3779b97f4a7c15ull + 1) + static_cast<std::uint64_t>(id));
}

bool is_known(const attention::Recurrence& of) {
  return of.rule == attention::StateRule::sum &&
         (of.decay == Decay::none || of.decay == Decay::head);
}

std::uint64_t power(std::uint64_t base, std::int64_t exponent) {
  std::uint64_t result = 1;
  for (; exponent > 0; exponent /= 2, base *= base) {
    if (exponent % 2 != 0) result *= base;
  }
  return result;
}

/// Of all tokens where decays are known.
std::uint64_t known_tau(const attention::Recurrence& of, bool backward) {
  return of.causal ? random_number(backward ? 12 : 11, 0) | 1 : 1;
}

}  // namespace

TokenMap token_map(const attention::Recurrence& of, bool backward, std::int64_t id) {
  return {is_known(of) ? known_tau(of, backward) : random_number(backward ? 2 : 1, id) | 1,
          random_number(backward ? 4 : 3, id)};
}

std::uint64_t state_row_weight(std::int64_t row) { return random_number(5, row) | 1; }

// ---- expected

ExpectedStates::ExpectedStates(const Schedule& schedule, const attention::HeadMasks& masks,
                               const Layout& layout, int cells)
    : recurrence_(schedule.shapes.linear->recurrence), cells_(cells) {
  const LinearCall& call = *schedule.shapes.linear;
  for (std::int64_t row = 0; row < schedule.shapes.value_dim; ++row)
    all_rows_ += state_row_weight(row);
  const std::int64_t tokens = masks.tokens();
  const auto refuse = [](std::int64_t token) {
    throw Verdict{Fault::malformed, concat("the mask shows token ", token,
                                           " other than all earlier tokens of a document")};
  };
  // What each token sees, from the mask's slices alone.
  std::vector<std::int64_t> begin(static_cast<std::size_t>(tokens), tokens),
      seen(static_cast<std::size_t>(tokens), 0);
  if (!masks.shared()) refuse(0);
  for (const Slice& slice : masks.of(0).slices()) {
    for (std::int64_t t = slice.q_begin; t < slice.q_end; ++t) {
      if (slice.key_begin(t) >= slice.key_end(t)) continue;
      const auto i = static_cast<std::size_t>(t);
      begin[i] = std::min(begin[i], slice.key_begin(t));
      seen[i] += slice.key_end(t) - slice.key_begin(t);
    }
  }
  start_.assign(static_cast<std::size_t>(tokens), false);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto i = static_cast<std::size_t>(t);
    const std::int64_t sequence = t / layout.seq_len() * layout.seq_len();
    if (!call.recurrence.causal) {
      if (begin[i] != sequence || seen[i] != layout.seq_len()) refuse(t);
      continue;
    }
    const bool at_start = begin[i] == t;
    if (seen[i] != t + 1 - begin[i] || begin[i] < sequence ||
        (!at_start && begin[i] != begin[i - 1]))
      refuse(t);
    start_[i] = at_start && !(call.initial_state && t == sequence);
  }
  before_.assign(static_cast<std::size_t>(tokens * cells), 0);
  behind_.assign(static_cast<std::size_t>(tokens * cells), 0);
  for (std::int64_t s = 0; s < layout.batch(); ++s)
    chain(s * layout.seq_len(), (s + 1) * layout.seq_len(), call.initial_state, call.final_state);
}

void ExpectedStates::chain(std::int64_t begin, std::int64_t end, bool initial, bool final) {
  for (int cell = 0; cell < cells_; ++cell) {
    const auto at = [&](std::int64_t t) { return static_cast<std::size_t>(t * cells_ + cell); };
    const auto own = [&](bool backward, std::int64_t t) {
      return token_map(recurrence_, backward, t * cells_ + cell);
    };
    std::uint64_t x = initial ? random_number(6, begin * cells_ + cell) : 0;
    for (std::int64_t t = begin; t < end; ++t) {
      if (start_[static_cast<std::size_t>(t)]) x = 0;
      before_[at(t)] = x;
      x = own(false, t).tau * x + own(false, t).mu;
    }
    std::uint64_t y = final ? random_number(7, end * cells_ + cell) : 0;
    for (std::int64_t t = end - 1; t >= begin; --t) {
      behind_[at(t)] = y;
      y = start_[static_cast<std::size_t>(t)] ? 0 : own(true, t).tau * y + own(true, t).mu;
    }
    if (recurrence_.causal) continue;
    for (std::int64_t t = begin; t < end; ++t) before_[at(t)] = x, behind_[at(t)] = y;
  }
}

std::uint64_t ExpectedStates::after(std::int64_t id) const {
  if (!recurrence_.causal) return before(id);
  const TokenMap map = token_map(recurrence_, false, id);
  return map.tau * before(id) + map.mu;
}

std::uint64_t ExpectedStates::gradient_before(std::int64_t id) const {
  const TokenMap map = token_map(recurrence_, true, id);
  return map.tau * behind(id) + map.mu;
}

std::uint64_t ExpectedStates::row(bool backward, std::int64_t id) const {
  return all_rows_ * (backward ? gradient_row(before(id), behind(id)) : after(id));
}

std::uint64_t ExpectedStates::state(std::string_view slot, std::int64_t token, int cell) const {
  const std::int64_t id = token * cells_ + cell;
  if (slot == "final_state") return after(id - cells_);
  if (slot == "dfinal_state") return behind(id - cells_);
  if (slot == "dinitial_state") return gradient_before(id);
  return before(id);  // states, initial_state
}

// ---- runs

ShadowRun::ShadowRun(const LinearRun& run, Shadow& shadow) : run_(run), shadow_(shadow) {
  const ShadowUnits& units = shadow.units();
  const int value_cells = shadow.cells_of_all(Side::query),
            key_cells = shadow.cells_of_all(Side::key);
  shadow.require_defined(run.qk);
  shadow.require_defined(run.v);
  if (run.slopes) shadow.require_defined(*run.slopes);
  if (run.v.empty()) return;
  const ShadowCells values = shadow.cells(run.v), keys = shadow.cells(run.qk);
  first_ = values.id(0, 0) / value_cells;
  first_cell_ = static_cast<int>(values.id(0, 0) % value_cells);
  require_same(run.v);
  if (run.gate) require_same(*run.gate);
  for (std::int64_t row = 0; row < keys.rows; ++row) {
    for (int cell = 0; cell < keys.per_view; ++cell) {
      const int of = static_cast<int>(keys.id(row, cell) % key_cells);
      const int value_cell = first_cell_ + cell * values.per_view / keys.per_view;
      if (keys.id(row, cell) / key_cells != first_ + row ||
          kv_cell_of(value_cell, units, shadow.shapes()) != of) {
        shadow.fail(Fault::misplaced, "goes through row ", row,
                    " of q and k of another token or head than the values'");
      }
    }
  }
}

void ShadowRun::require_same(const View& view) const {
  shadow_.require_defined(view);
  const int value_cells = shadow_.cells_of_all(Side::query);
  const ShadowCells cells = shadow_.cells(view);
  for (std::int64_t row = 0; row < cells.rows; ++row) {
    for (int cell = 0; cell < cells.per_view; ++cell) {
      if (cells.id(row, cell) != (first_ + row) * value_cells + first_cell_ + cell) {
        shadow_.fail(Fault::misplaced, "goes through row ", row,
                     " of another token or head than the one before it leads to");
      }
    }
  }
}

bool ShadowRun::starts_at(std::int64_t row) const {
  return std::ranges::binary_search(run_.starts, row);
}

TokenMap ShadowRun::map(bool backward, std::int64_t row, int cell) const {
  const int cells = shadow_.cells_of_all(Side::query);
  return token_map(run_.recurrence, backward, (first_ + row) * cells + first_cell_ + cell);
}

std::uint64_t ShadowRun::sum_of(const std::optional<View>& state, int cell) const {
  if (!state) return 0;
  const ShadowCells cells = shadow_.cells(*state);
  std::uint64_t sum = 0;
  for (std::int64_t row = 0; row < cells.rows; ++row) sum += cells.sum(row, cell);
  return sum;
}

namespace {

/// A state view holds a whole state of the heads from `first_cell` on.
void require_state(const View& view, int first_cell, Shadow& shadow) {
  shadow.require_defined(view);
  const ShadowCells cells = shadow.cells(view);
  const int all = shadow.cells_of_all(Side::state);
  for (std::int64_t row = 0; row < cells.rows; ++row) {
    for (int cell = 0; cell < cells.per_view; ++cell) {
      if (cells.id(row, cell) != row * all + first_cell + cell)
        shadow.fail(Fault::misplaced, "reads a state of other rows or heads");
    }
  }
}

}  // namespace

void ShadowRun::summarize(bool backward, const View& state) const {
  const ShadowCells into = shadow_.cells(state);
  const int all = shadow_.cells_of_all(Side::state);
  for (int cell = 0; cell < into.per_view; ++cell) {
    std::uint64_t m = 0;
    if (backward) {
      const std::int64_t end = run_.starts.empty() ? rows() : run_.starts.front();
      for (std::int64_t row = end - 1; row >= 0; --row) {
        const TokenMap own = map(true, row, cell);
        m = own.tau * m + own.mu;
      }
    } else {
      for (std::int64_t row = run_.starts.empty() ? 0 : run_.starts.back(); row < rows(); ++row) {
        const TokenMap own = map(false, row, cell);
        m = own.tau * m + own.mu;
      }
    }
    for (std::int64_t row = 0; row < into.rows; ++row) {
      into.id(row, cell) = row * all + first_cell_ + cell;
      into.sum(row, cell) = state_row_weight(row) * m;
    }
  }
}

void ShadowRun::write_transition(const View& transition) const {
  const ShadowCells into = shadow_.cells(transition);
  const int all = shadow_.cells_of_all(Side::state);
  for (int cell = 0; cell < into.per_view; ++cell) {
    std::uint64_t forward = 1, backward = 1;
    for (std::int64_t row = 0; row < rows(); ++row) {
      forward *= map(false, row, cell).tau;
      backward *= map(true, row, cell).tau;
    }
    for (std::int64_t row = 0; row < into.rows; ++row) {
      into.id(row, cell) = row * all + first_cell_ + cell;
      into.sum(row, cell) = forward;
      into.transposed(row, cell) = backward;
    }
  }
}

void ShadowRun::sweep(const std::optional<View>& in, const View& out,
                      const std::optional<View>& after) const {
  if (in) require_state(*in, first_cell_, shadow_);
  shadow_.prepare_accumulator(out, run_.v, Mode::write);
  const std::uint64_t all_rows = shadow_.states().all_rows();
  const ShadowCells into = shadow_.cells(out);
  const int all = shadow_.cells_of_all(Side::state);
  for (int cell = 0; cell < into.per_view; ++cell) {
    std::uint64_t x = sum_of(in, cell), tau = 1, mu = 0;
    for (std::int64_t row = 0; row < rows(); ++row) {
      if (run_.recurrence.causal) {
        if (starts_at(row)) x = 0, tau = 0, mu = 0;
        const TokenMap own = map(false, row, cell);
        x = own.tau * x + all_rows * own.mu;
        tau *= own.tau;
        mu = own.tau * mu + own.mu;
      }
      into.sum(row, cell) = x;
    }
    if (!after) continue;
    const ShadowCells states = shadow_.cells(*after);
    for (std::int64_t row = 0; row < states.rows; ++row) {
      const std::uint64_t entered = in ? shadow_.cells(*in).sum(row, cell) : 0;
      states.id(row, cell) = row * all + first_cell_ + cell;
      states.sum(row, cell) = tau * entered + state_row_weight(row) * mu;
    }
  }
}

void ShadowRun::sweep_backward(const std::optional<View>& in, const std::optional<View>& behind,
                               const Gradients& into, const std::optional<View>& before) const {
  for (const auto& view : {in, behind}) {
    if (view) require_state(*view, first_cell_, shadow_);
  }
  shadow_.prepare_accumulator(into.qk, run_.qk, Mode::write);
  shadow_.prepare_accumulator(into.v, run_.v, Mode::write);
  if (into.gate) shadow_.prepare_accumulator(*into.gate, run_.v, Mode::write);
  const std::uint64_t all_rows = shadow_.states().all_rows();
  const ShadowCells values = shadow_.cells(into.v), keys = shadow_.cells(into.qk);
  const int all = shadow_.cells_of_all(Side::state);
  std::vector<std::uint64_t> entering(static_cast<std::size_t>(rows()));
  for (int cell = 0; cell < values.per_view; ++cell) {
    const bool causal = run_.recurrence.causal;
    std::uint64_t x = sum_of(in, cell);
    for (std::int64_t row = 0; row < rows(); ++row) {
      if (causal && starts_at(row)) x = 0;
      entering[static_cast<std::size_t>(row)] = x;
      if (!causal) continue;
      const TokenMap own = map(false, row, cell);
      x = own.tau * x + all_rows * own.mu;
    }
    std::uint64_t y = sum_of(behind, cell), tau = 1, mu = 0;
    for (std::int64_t row = rows() - 1; row >= 0; --row) {
      const std::uint64_t value = gradient_row(entering[static_cast<std::size_t>(row)], y);
      values.sum(row, cell) = value;
      if (into.gate) shadow_.cells(*into.gate).sum(row, cell) = value;
      keys.sum(row, cell * keys.per_view / values.per_view) += value;
      if (!causal) continue;
      const TokenMap own = map(true, row, cell);
      y = own.tau * y + all_rows * own.mu;
      tau *= own.tau;
      mu = own.tau * mu + own.mu;
      if (starts_at(row)) y = 0, tau = 0, mu = 0;
    }
    if (!before) continue;
    const ShadowCells states = shadow_.cells(*before);
    for (std::int64_t row = 0; row < states.rows; ++row) {
      const std::uint64_t left = behind ? shadow_.cells(*behind).sum(row, cell) : 0;
      states.id(row, cell) = row * all + first_cell_ + cell;
      states.sum(row, cell) = tau * left + state_row_weight(row) * mu;
    }
  }
}

void ShadowRun::add_slopes(const View& into, Mode mode) const {
  shadow_.prepare_accumulator(into, *run_.slopes, mode);
  const ShadowCells sums = shadow_.cells(into);
  for (std::int64_t row = 0; row < rows(); ++row) {
    for (int cell = 0; cell < sums.per_view; ++cell) sums.sum(0, cell) += map(true, row, cell).mu;
  }
}

// ---- folds

ShadowFold::ShadowFold(const std::optional<View>& in, const View& out, Shadow& shadow)
    : out_(out), shadow_(shadow) {
  const ShadowCells cells = shadow.cells(out);
  forward_.assign(static_cast<std::size_t>(cells.per_view), 1);
  backward_ = forward_;
  ids_.assign(static_cast<std::size_t>(cells.rows * cells.per_view), -1);
  if (in) read(*in, numbers_);
}

void ShadowFold::read(const View& state, std::vector<std::uint64_t>& into) {
  shadow_.require_defined(state);
  const ShadowCells cells = shadow_.cells(state);
  into.clear();
  for (std::int64_t row = 0; row < cells.rows; ++row) {
    for (int cell = 0; cell < cells.per_view; ++cell) {
      std::int64_t& id = ids_[into.size()];
      if (id >= 0 && id != cells.id(row, cell))
        shadow_.fail(Fault::misplaced, "folds other rows or heads of a state into these");
      id = cells.id(row, cell);
      into.push_back(cells.sum(row, cell));
    }
  }
}

std::uint64_t ShadowFold::tau(const std::optional<View>& transition, std::int64_t tokens,
                              bool transposed, int cell) const {
  const attention::Recurrence& of = shadow_.states().recurrence();
  if (!transition) return power(known_tau(of, transposed), tokens);
  const ShadowCells cells = shadow_.cells(*transition);
  const int all = shadow_.cells_of_all(Side::state);
  for (std::int64_t row = 0; row < cells.rows; ++row) {
    const std::int64_t head = ids_[static_cast<std::size_t>(cell)] % all;
    if (cells.id(row, cell) != row * all + head)
      shadow_.fail(Fault::misplaced, "folds with a transition of other rows or heads");
  }
  return transposed ? cells.transposed(0, cell) : cells.sum(0, cell);
}

void ShadowFold::replace(const View& state) { read(state, numbers_); }

void ShadowFold::add(const std::optional<View>& transition, std::int64_t tokens, bool transposed,
                     const View& state) {
  if (transition) shadow_.require_defined(*transition);
  std::vector<std::uint64_t> own;
  read(state, own);
  const auto cells = forward_.size();
  for (std::size_t cell = 0; cell < cells; ++cell) {
    const std::uint64_t t = tau(transition, tokens, transposed, static_cast<int>(cell));
    for (std::size_t i = cell; i < own.size(); i += cells) numbers_[i] = t * numbers_[i] + own[i];
  }
}

void ShadowFold::finish() {
  const ShadowCells cells = shadow_.cells(out_);
  std::size_t i = 0;
  for (std::int64_t row = 0; row < cells.rows; ++row) {
    for (int cell = 0; cell < cells.per_view; ++cell, ++i) {
      cells.id(row, cell) = ids_[i];
      cells.sum(row, cell) = numbers_[i];
    }
  }
}

void ShadowFold::compose(const std::optional<View>& transition, std::int64_t tokens) {
  if (transition) shadow_.require_defined(*transition);
  for (std::size_t cell = 0; cell < forward_.size(); ++cell) {
    forward_[cell] *= tau(transition, tokens, false, static_cast<int>(cell));
    backward_[cell] *= tau(transition, tokens, true, static_cast<int>(cell));
  }
}

void ShadowFold::finish_transition(const View& out) {
  const ShadowCells cells = shadow_.cells(out);
  const int all = shadow_.cells_of_all(Side::state);
  for (std::int64_t row = 0; row < cells.rows; ++row) {
    for (int cell = 0; cell < cells.per_view; ++cell) {
      const auto c = static_cast<std::size_t>(cell);
      cells.id(row, cell) = row * all + ids_[c] % all;
      cells.sum(row, cell) = forward_[c];
      cells.transposed(row, cell) = backward_[c];
    }
  }
}

}  // namespace longhaul::parallel
