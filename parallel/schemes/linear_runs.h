#pragma once
// A recurrence's runs over all ranks, in token order, and which states go from run to run: what
// every linear scheme walks.

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "parallel/builder.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

/// Consecutive tokens on one rank. Where sequences have states of their own (initial, final, or
/// not causal), a run ends with its sequence.
struct TokenRun {
  int rank = 0;
  std::int64_t first = 0;                   ///< token
  std::int64_t row_begin = 0, row_end = 0;  ///< rows of the rank
  std::vector<std::int64_t> starts;         ///< rows of the run at which a document begins
  int ordinal = 0;                          ///< among the rank's runs
  bool before = false;          ///< the run before it in token order is of the same document
  bool behind = false;          ///< so is the one behind it
  std::int64_t entering = -1;   ///< which of the rank's saved states enters it
  std::int64_t through = -1;    ///< which of the rank's saved transitions is its own
  std::int64_t beginning = -1;  ///< which of the rank's initial states enters it
  std::int64_t ending = -1;     ///< which of the rank's final states leaves it
  std::int64_t tokens() const { return row_end - row_begin; }
};

/// Runs of one document, or of one after another, whose states depend on each other: the numbers of
/// runs in token order. A state leaves the first and enters the last; one comes through the others.
using RunChain = std::vector<int>;

class LinearRuns {
 public:
  /// Throws Error(config) for a mask that is not causal within documents (not causal: full), or a
  /// layout whose runs are not of consecutive tokens.
  explicit LinearRuns(const SchemeInputs& inputs);

  const std::vector<TokenRun>& runs() const { return runs_; }
  const TokenRun& operator[](int run) const { return runs_[static_cast<std::size_t>(run)]; }
  /// Numbers of a rank's runs, in token order.
  const std::vector<int>& of_rank(int rank) const {
    return of_rank_[static_cast<std::size_t>(rank)];
  }
  /// At least two runs each, in token order. Not causal: all runs of a sequence, be it one.
  const std::vector<RunChain>& chains() const { return chains_; }
  int ranks() const { return static_cast<int>(of_rank_.size()); }

 private:
  std::vector<TokenRun> runs_;
  std::vector<std::vector<int>> of_rank_;
  std::vector<RunChain> chains_;
};

/// One rank's program of a linear call in the making: the slots that the call binds and the steps
/// that every scheme makes of them. The views of runs below are of states that go the call's way:
/// forward the states, backward their gradients.
class LinearProgram {
 public:
  /// `with_transitions`: the scheme folds, so transitions are kept from forward for backward.
  LinearProgram(const SchemeInputs& inputs, const LinearRuns& runs, int rank, int channels,
                bool with_transitions);

  Builder& builder() { return builder_; }
  const LinearRecords& records() const { return records_; }
  bool backward() const { return backward_; }
  int rank() const { return rank_; }
  int heads() const { return heads_; }
  std::int64_t state_rows() const { return records_.state_rows; }

  /// Chains in the order in which states go: forward from first to last run, backward from last to
  /// first.
  std::vector<RunChain> ordered_chains() const;
  /// Whether a state comes into a chain from outside: the initial, or backward the final state.
  bool enters(const RunChain& ordered) const;

  /// M of a run (backward N) into `state`, and its transition into transition(run) where it is one
  /// of those that are kept.
  void summarize(int run, const View& state);
  /// The run's own transition; nothing where it is known.
  std::optional<View> transition(int run) const;
  /// What a fold goes through for that run, whose M (or N) lies in `state`.
  FoldLink link(int run, const View& state) const;
  /// As link() where nothing before comes through, or nothing is before.
  static FoldLink reset(const View& state) { return {state, {}, 0, true}; }
  void fold(std::vector<FoldLink> links, const std::optional<View>& in, const View& out,
            const std::optional<View>& out_transition = {});
  /// The state from outside that enters a run, if any.
  std::optional<View> outside(int run) const;
  /// Where the state (or gradient) that enters a run from its chain goes.
  View incoming(int run);
  /// The outputs of a run, or its gradients: state from outside, or from `incoming()` where its
  /// chain gives one. `out`: where the state that leaves it is wanted.
  void sweep(int run, const std::optional<View>& out = {});
  /// The same for heads [begin, end) of q and k, and the value heads that read them.
  void sweep(int run, int begin, int end, const std::optional<View>& out);

  Program finish() &&;

 private:
  LinearRun run_of(const TokenRun& run, int begin, int end) const;
  View rows_of_run(const View& all, const TokenRun& run, int begin, int end) const;
  void add_slopes(int begin, int end, RunGradients& gradients);
  /// The number-th state of a slot of states.
  View state_of(const View& all, std::int64_t number) const;

  const SchemeInputs& inputs_;
  const LinearRuns& runs_;
  const int rank_;
  const bool backward_;
  const LinearCall& call_;
  const LinearRecords records_;
  const int heads_, key_heads_;
  Builder builder_;
  View qk_, v_, out_, states_;
  std::optional<View> gate_, slopes_, transitions_, initial_, final_;
  // Backward:
  View dout_, dqk_, dv_;
  std::optional<View> dgate_, dslopes_, dinitial_, incoming_;
  std::set<int> summarized_;
  int slopes_written_ = 0;  ///< key heads before it have gradients of their constant decays
};

/// A forward call whose states are given: sweeps alone, whatever the scheme.
ProgramGenerator prepare_from_states(const SchemeInputs& inputs);

}  // namespace longhaul::parallel
