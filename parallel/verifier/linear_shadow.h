#pragma once
// Shadow values of a recurrence: a state is one number modulo 2^64, and token t maps it to
// tau x + mu, with random tau (odd) and mu of its own; backward, with others. At a document's start
// nothing of before comes through. Such maps do not commute, so every output proves that each
// earlier token of its document came through once and in order.
//
// Of a state's row (a value dim) the number is the state's times the row's weight, so that rows
// taken for one another are seen. Decays that are known (none, a constant a head) have one tau for
// all tokens, since only their number is known.

#include <optional>
#include <vector>

#include "parallel/layout.h"
#include "parallel/steps/linear.h"
#include "parallel/verifier/shadow.h"

namespace longhaul::parallel {

/// The affine map of a token and cell of value heads (id = token * cells + cell).
struct TokenMap {
  std::uint64_t tau, mu;
};
TokenMap token_map(const attention::Recurrence& of, bool backward, std::int64_t id);
std::uint64_t state_row_weight(std::int64_t row);

/// What a recurrence's outputs must hold, from the mask and the layout's sequences alone.
class ExpectedStates {
 public:
  /// Throws a Verdict for a mask that is not causal within documents (or full, where the recurrence
  /// is not causal).
  ExpectedStates(const Schedule& schedule, const attention::HeadMasks& masks, const Layout& layout,
                 int cells);

  bool is_start(std::int64_t token) const { return start_[static_cast<std::size_t>(token)]; }
  /// The number of the state before (forward) or behind (backward) a token.
  std::uint64_t before(std::int64_t id) const { return before_[static_cast<std::size_t>(id)]; }
  std::uint64_t behind(std::int64_t id) const { return behind_[static_cast<std::size_t>(id)]; }
  /// Forward: after a token; backward: of the gradient of the state before it.
  std::uint64_t after(std::int64_t id) const;
  std::uint64_t gradient_before(std::int64_t id) const;
  /// Of an output row of tokens, of one cell of the value heads.
  std::uint64_t row(bool backward, std::int64_t id) const;
  /// Of the state slot of that name which enters `token` (or leaves the one before it).
  std::uint64_t state(std::string_view slot, std::int64_t token, int cell) const;
  const attention::Recurrence& recurrence() const { return recurrence_; }
  int cells() const { return cells_; }
  /// The sum of all rows' weights: what a whole state's numbers sum to, per unit.
  std::uint64_t all_rows() const { return all_rows_; }

 private:
  void chain(std::int64_t begin, std::int64_t end, bool initial, bool final);

  const attention::Recurrence recurrence_;
  const int cells_;
  std::uint64_t all_rows_ = 0;
  std::vector<bool> start_;
  std::vector<std::uint64_t> before_, behind_;  // by id
};

/// What a gradient row of tokens holds, of the states' numbers before and behind its token.
constexpr std::uint64_t gradient_row(std::uint64_t before, std::uint64_t behind) {
  return 3 * before + 5 * behind;
}

/// A step's run on shadow values: rows of consecutive tokens whose views belong together.
class ShadowRun {
 public:
  ShadowRun(const LinearRun& run, Shadow& shadow);
  /// A view of the same tokens and value heads.
  void require_same(const View& view) const;

  void summarize(bool backward, const View& state) const;
  void write_transition(const View& transition) const;
  void sweep(const std::optional<View>& in, const View& out,
             const std::optional<View>& after) const;
  struct Gradients {
    View qk, v;
    std::optional<View> gate;
  };
  void sweep_backward(const std::optional<View>& in, const std::optional<View>& behind,
                      const Gradients& into, const std::optional<View>& before) const;
  void add_slopes(const View& into, Mode mode) const;

 private:
  std::int64_t rows() const { return run_.v.rows(); }
  bool starts_at(std::int64_t row) const;
  TokenMap map(bool backward, std::int64_t row, int cell) const;
  /// A whole state's number: of all its rows together.
  std::uint64_t sum_of(const std::optional<View>& state, int cell) const;

  const LinearRun& run_;
  Shadow& shadow_;
  std::int64_t first_ = 0;  // token
  int first_cell_ = 0;      // of the call's value heads
};

/// A fold's numbers.
class ShadowFold {
 public:
  ShadowFold(const std::optional<View>& in, const View& out, Shadow& shadow);
  void replace(const View& state);
  void add(const std::optional<View>& transition, std::int64_t tokens, bool transposed,
           const View& state);
  void finish();
  void compose(const std::optional<View>& transition, std::int64_t tokens);
  void finish_transition(const View& out);

 private:
  std::uint64_t tau(const std::optional<View>& transition, std::int64_t tokens, bool transposed,
                    int cell) const;
  void read(const View& state, std::vector<std::uint64_t>& into);

  const View out_;
  Shadow& shadow_;
  std::vector<std::int64_t> ids_;                  // by row and cell of the views
  std::vector<std::uint64_t> numbers_;             // likewise
  std::vector<std::uint64_t> forward_, backward_;  // by cell: of the links so far together
};

}  // namespace longhaul::parallel
