#pragma once
// Who takes part in a generator's work and what each of them sees of the others. A generator knows
// members, never ranks or communicators, so one generator can run inside another: the members of a
// ring may be ranks, or whole groups of ranks that have exchanged heads for tokens.

#include <vector>

#include "attention/token_index.h"
#include "parallel/builder.h"
#include "parallel/schemes/scheme.h"

namespace longhaul::parallel {

class Members {
 public:
  /// Member m holds the tokens of runs[m]; its views hold query heads [head_begin, head_end).
  Members(const attention::HeadMasks& masks, std::vector<std::vector<Run>> runs, int head_begin,
          int head_end);
  /// The ranks of the axis, with all heads.
  explicit Members(const SchemeInputs& inputs);

  int size() const { return static_cast<int>(runs_.size()); }
  const std::vector<Run>& runs(int member) const { return runs_[static_cast<std::size_t>(member)]; }
  std::int64_t rows(int member) const { return rows_[static_cast<std::size_t>(member)]; }
  /// Rows of the longest member but `except`.
  std::int64_t longest(int except) const;
  /// What the first member's queries see of the second one's keys.
  Bands bands(int query_member, int key_member) const;
  /// What it sees of several members' keys, one after another in one view.
  Bands bands(int query_member, const attention::TokenIndex& keys) const;
  bool visible(int query_member, int key_member) const;

 private:
  struct Group {
    int head_begin, head_end;  // of the views
    const attention::Mask* mask;
  };
  const attention::TokenIndex& index(int member) const {
    return indices_[static_cast<std::size_t>(member)];
  }

  std::vector<Group> groups_;
  std::vector<std::vector<Run>> runs_;
  std::vector<std::int64_t> rows_;
  std::vector<attention::TokenIndex> indices_;
};

/// The runs of several ranks, one after another: rows of a view that holds all of theirs.
std::vector<Run> joined_runs(const Layout& layout, const std::vector<int>& ranks);

/// The caller's tensors as slots of a program.
struct ForwardViews {
  View q, kv, out;
};
struct BackwardViews {
  View q_bundle, kv, dq, dkv;
};
ForwardViews add_forward_slots(Builder& builder, const SchemeInputs& inputs, int rank);
BackwardViews add_backward_slots(Builder& builder, const SchemeInputs& inputs, int rank);

}  // namespace longhaul::parallel
