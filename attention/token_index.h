#pragma once
// Where the tokens of a view lie among its rows, found by token. Made once for a view that is cut
// against many others.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/mask.h"

namespace longhaul::attention {

/// A run and the row number of its first token.
struct PlacedRun {
  Run run;  ///< not empty; of one token by 1
  std::int64_t row = 0;
  std::int64_t end() const { return run.first + (run.count - 1) * run.stride + 1; }
};

class TokenIndex {
 public:
  /// Row r of the view is the r-th token of its runs.
  explicit TokenIndex(std::span<const Run> runs);

  bool empty() const { return by_row_.empty(); }
  /// Tokens [first(), end()) hold all of the view's.
  std::int64_t first() const { return first_; }
  std::int64_t end() const { return end_; }
  const std::vector<PlacedRun>& by_row() const { return by_row_; }

  /// Calls visit(run) for the runs that may hold a token of [begin, end), until it returns true;
  /// whether it did. Cost: a binary search for each class of runs that the range meets, so strided
  /// runs that interleave do not cost where they hold no token.
  template <class Visit>
  bool visit_near(std::int64_t begin, std::int64_t end, const Visit& visit) const;

 private:
  /// Runs of one stride that agree modulo it.
  struct Class {
    std::int64_t residue = 0;
    std::size_t begin = 0, end = 0;  // in by_token()
  };
  struct Family {
    std::int64_t stride = 1;
    std::size_t begin = 0, end = 0;  // in classes_, by residue
  };

  const std::vector<PlacedRun>& by_token() const { return sorted_.empty() ? by_row_ : sorted_; }
  template <class Visit>
  bool visit_class(const Class& one, std::int64_t begin, std::int64_t end,
                   const Visit& visit) const;

  std::int64_t first_ = 0, end_ = 0;
  std::vector<PlacedRun> by_row_;
  std::vector<PlacedRun> sorted_;         // by stride, residue and first token; empty: by_row_ is
  std::vector<std::int64_t> end_so_far_;  // of by_token(), rises within a class
  std::vector<Class> classes_;
  std::vector<Family> families_;
};

template <class Visit>
bool TokenIndex::visit_class(const Class& one, std::int64_t begin, std::int64_t end,
                             const Visit& visit) const {
  const auto ends = end_so_far_.begin();
  auto at = static_cast<std::size_t>(std::upper_bound(ends + static_cast<std::ptrdiff_t>(one.begin),
                                                      ends + static_cast<std::ptrdiff_t>(one.end),
                                                      begin) -
                                     ends);
  const PlacedRun* const runs = by_token().data();
  for (; at < one.end && runs[at].run.first < end; ++at) {
    if (visit(runs[at])) return true;
  }
  return false;
}

template <class Visit>
bool TokenIndex::visit_near(std::int64_t begin, std::int64_t end, const Visit& visit) const {
  if (begin >= end) return false;
  for (const Family& family : families_) {
    const Class *const first = classes_.data() + family.begin, *const last =
                                                                   classes_.data() + family.end;
    const auto visit_residues = [&](std::int64_t from, std::int64_t to) {
      const Class* one = std::lower_bound(
          first, last, from, [](const Class& a, std::int64_t r) { return a.residue < r; });
      for (; one != last && one->residue < to; ++one) {
        if (visit_class(*one, begin, end, visit)) return true;
      }
      return false;
    };
    const std::int64_t stride = family.stride;
    if (last - first == 1 || end - begin >= stride) {
      if (visit_residues(0, stride)) return true;
      continue;
    }
    const std::int64_t from = begin % stride, to = from + (end - begin);
    if (visit_residues(from, std::min(to, stride)) || visit_residues(0, to - stride)) return true;
  }
  return false;
}

/// As cut() and any_visible() of mask.h.
std::vector<Slice> cut(const Mask& mask, const TokenIndex& queries, const TokenIndex& keys);
bool any_visible(const Mask& mask, const TokenIndex& queries, const TokenIndex& keys);

}  // namespace longhaul::attention
