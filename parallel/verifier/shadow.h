#pragma once
// Shadow values: what the verifier's run carries in place of tensors, and what a step's rehearse()
// works on.

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/head_masks.h"
#include "parallel/schedule.h"
#include "parallel/verifier/verifier.h"
#include "runtime/error.h"

namespace longhaul::parallel {

class ExpectedStates;

/// Heads per shadow cell: heads that no view ever separates share one.
struct ShadowUnits {
  int q = 1, kv = 1;
  int of(Side side) const { return side == Side::key ? kv : q; }
};
ShadowUnits shadow_units(const Schedule& schedule, const attention::HeadMasks& masks);

/// A random odd number for a cell of one side: id = token * cells of all heads + cell.
std::uint64_t shadow_weight(Side side, std::int64_t id);
/// The key/value cell that a query cell attends to, in global numbers.
int kv_cell_of(int q_cell, const ShadowUnits& units, const Shapes& shapes);

/// What outputs must hold in the end, from the mask alone: sums over visible pairs, per token and
/// cell.
class ExpectedSums {
 public:
  ExpectedSums(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout,
               const ShadowUnits& units);
  ~ExpectedSums();
  std::uint64_t of(Side side, std::int64_t id) const {
    return (side == Side::key ? keys_ : queries_)[static_cast<std::size_t>(id)];
  }
  /// Of a recurrence's call; nullptr for others.
  const ExpectedStates* states() const { return states_.get(); }

 private:
  void add_visible(const Schedule& schedule, const attention::HeadMasks& masks,
                   const ShadowUnits& units);
  void add_states(const Schedule& schedule, const ShadowUnits& units);

  std::vector<std::uint64_t> queries_, keys_;  // by id
  std::unique_ptr<const ExpectedStates> states_;
};

/// The cells of a view, by row and cell of the view.
struct ShadowCells {
  std::int64_t rows;
  int per_view;               ///< cells in a row of the view
  std::int64_t per_row;       ///< in a row of the slot
  std::int64_t* ids;          ///< -1 where nothing has been written
  std::uint64_t* sums;        ///< of accumulators, outputs and states; nullptr for others
  std::uint64_t* transposes;  ///< of transitions, whose sum is what they multiply by
  std::int64_t& id(std::int64_t row, int cell) const { return ids[row * per_row + cell]; }
  std::uint64_t& sum(std::int64_t row, int cell) const { return sums[row * per_row + cell]; }
  std::uint64_t& transposed(std::int64_t row, int cell) const {
    return transposes[row * per_row + cell];
  }
};

/// The shadow slots of one rank. Faults are thrown as Verdict.
class Shadow {
 public:
  Shadow(const Program& program, const Schedule& schedule, const ExpectedSums& expected,
         const ShadowUnits& units);

  /// Rehearses a step.
  void run(int step);
  /// A message's view arrives from the sender.
  void deliver(const View& view, int step, Shadow& sender, const View& sent, int send_step);
  /// Every output row is defined, is the declared token and head, and holds the expected sum.
  void check_outputs();

  // For rehearse().
  const ShadowUnits& units() const { return units_; }
  const Shapes& shapes() const { return schedule_.shapes; }
  const ExpectedStates& states() const { return *expected_.states(); }
  /// In a row of all the call's heads.
  int cells_of_all(Side side) const {
    return (side == Side::key ? shapes().kv_heads : shapes().heads) / units_.of(side);
  }
  ShadowCells cells(const View& view);
  void require_defined(const View& view);
  /// A write gives the rows the ids of `like` and sum 0; an add demands that they have them
  /// already.
  void prepare_accumulator(const View& view, const View& like, Mode mode);
  /// Rows of `view` become those of `sent`.
  void receive(const View& view, Shadow& sender, const View& sent);
  template <class... Parts>
  [[noreturn]] void fail(Fault fault, const Parts&... parts) const {
    throw Verdict{fault, runtime::concat("rank ", program_.rank, ", step ", step_, " ", parts...)};
  }

 private:
  struct Slots {
    int per_row = 0;                        // cells in a row
    std::vector<std::int64_t> id;           // -1 undefined
    std::vector<std::uint64_t> sum;         // accumulators, outputs and states
    std::vector<std::uint64_t> transposed;  // transitions
  };
  const Slot& slot(int index) const { return program_.slots[static_cast<std::size_t>(index)]; }
  std::vector<std::int64_t> declared_ids(const Slot& slot) const;
  void define_input(const Slot& slot, Slots& own) const;
  /// What an output's cell must hold: `row` of its rows, the cell of that id.
  std::uint64_t expected_of(const Slot& slot, std::int64_t row, std::int64_t id) const;
  /// The token that a state slot's row is of, and the cell.
  std::uint64_t state_number(const Slot& slot, std::int64_t row, int cell) const;

  const Program& program_;
  const Schedule& schedule_;
  const ExpectedSums& expected_;
  const ShadowUnits units_;
  std::vector<Slots> slots_;
  int step_ = -1;
};

}  // namespace longhaul::parallel
