#pragma once
// Shadow values: what the verifier's run carries in place of tensors. Private to the verifier.

#include <cstdint>
#include <vector>

#include "attention/head_masks.h"
#include "parallel/schedule.h"

namespace longhaul::parallel {

/// Heads per shadow cell: heads that no view ever separates share one.
struct ShadowUnits {
  int q = 1, kv = 1;
};
ShadowUnits shadow_units(const Schedule& schedule, const attention::HeadMasks& masks);

/// What outputs must hold in the end, from the mask alone: sums over visible pairs, per token and
/// cell.
class ExpectedSums {
 public:
  ExpectedSums(const Schedule& schedule, const attention::HeadMasks& masks,
               const ShadowUnits& units);
  std::uint64_t of(bool key_side, std::int64_t id) const {
    return key_side ? keys_[static_cast<std::size_t>(id)] : queries_[static_cast<std::size_t>(id)];
  }

 private:
  std::vector<std::uint64_t> queries_, keys_;  // by id = token * cells + cell
};

/// The shadow slots of one rank. Faults are thrown as Verdict.
class Shadow {
 public:
  Shadow(const Program& program, const Schedule& schedule, const ExpectedSums& expected,
         const ShadowUnits& units);

  /// Runs a compute step.
  void run(int step);
  /// Copies a message's view from the sender.
  void receive(const View& view, const Shadow& sender, const View& sent, int step);
  /// Every output row is defined, is the declared token and head, and holds the expected sum.
  void check_outputs() const;

 private:
  struct Cells {
    int per_row = 0;                 // cells in a row
    std::vector<std::int64_t> id;    // token * cells of all heads + cell; -1 undefined
    std::vector<std::uint64_t> sum;  // accumulators
  };
  struct Rect {  // a view in cells
    std::int64_t row_begin, row_end;
    int begin, end;
  };
  const Slot& slot(int index) const { return program_.slots[static_cast<std::size_t>(index)]; }
  int unit(const View& view) const;
  Rect rect(const View& view) const;
  struct Place {  // where a view's rows and cells lie among its slot's
    std::int64_t first, per_row;
    std::size_t at(std::int64_t row, int cell) const {
      return static_cast<std::size_t>(first + row * per_row + cell);
    }
  };
  Place place(const View& view) const;
  void require_defined(const View& view, int step) const;
  std::vector<std::int64_t> declared_ids(const Slot& slot) const;
  void prepare_accumulator(const View& view, const View& like, Mode mode, int step);
  void require_keys(const View& kv, const std::optional<View>& v, int step) const;
  void add_visible_keys(const View& q, const View& kv, const std::vector<Slice>& bands,
                        const View& into, int step);
  void add_visible_queries(const View& q, const View& kv, const std::vector<Slice>& bands,
                           const View& into);
  void apply(const Attend& attend, int step);
  void apply(const AttendBackward& attend, int step);
  void apply(const Accumulate& accumulate, int step);
  void apply(const Copy& copy, int step);
  void apply(const Transfer&, int) {}

  const Program& program_;
  const Schedule& schedule_;
  const ExpectedSums& expected_;
  const ShadowUnits units_;
  std::vector<Cells> cells_;
};

}  // namespace longhaul::parallel
