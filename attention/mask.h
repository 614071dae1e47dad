#pragma once
// Masks are slices: a query range x a key range x a band lo <= key - query <= hi, either end
// possibly infinite. Slices are closed under cutting, intersecting and striping, give every row an
// interval of keys, and have a closed-form area, so cost is known without looking at data.

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "runtime/run.h"

namespace longhaul::attention {

constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max() / 4;

/// Query row i in [q_begin, q_end) sees the keys in [max(k_begin, i + lo), min(k_end, i + hi + 1)).
/// lo = -kUnbounded and hi = kUnbounded leave that side open. Used in global token numbers (a mask)
/// and, cut to two views, in row numbers of those views (a schedule step, a kernel call).
struct Slice {
  std::int64_t q_begin = 0, q_end = 0;
  std::int64_t k_begin = 0, k_end = 0;
  std::int64_t lo = -kUnbounded, hi = kUnbounded;
  bool operator==(const Slice&) const = default;

  /// The keys that row i sees; begin >= end when none.
  std::int64_t key_begin(std::int64_t i) const;
  std::int64_t key_end(std::int64_t i) const;
};

/// Exact number of (query, key) pairs.
std::int64_t area(const Slice& slice);
std::int64_t area(std::span<const Slice> slices);

/// The one tightest form: every end of the ranges and of the band is attained by a visible pair. An
/// empty slice becomes all zero.
Slice tightened(const Slice& slice);
/// Pairs in both.
Slice intersect(const Slice& a, const Slice& b);

/// Of tokens: how a view's rows lie in the sequence.
using runtime::Run;

/// A mask over `tokens` queries and as many keys. The slices are disjoint, tightened and not empty.
class Mask {
 public:
  Mask() = default;
  static Mask full(std::int64_t tokens);
  static Mask causal(std::int64_t tokens);
  /// Causal inside each document; `offsets` rise from 0 to the token count (empty documents
  /// allowed). Throws Error(data) naming the index where they do not.
  static Mask documents(std::span<const std::int64_t> offsets);
  /// Throws Error(data) naming two slices that overlap, or one that leaves [0, tokens).
  static Mask from_slices(std::int64_t tokens, std::vector<Slice> slices);

  /// `copies` of this mask along the diagonal: a batch of sequences with one mask, as one token
  /// axis.
  Mask repeated(std::int64_t copies) const;
  /// Masks of different sequences along the diagonal.
  static Mask concatenated(std::span<const Mask> masks);

  /// This mask's pairs with lo <= key - query <= hi.
  Mask within(std::int64_t lo, std::int64_t hi) const;

  std::int64_t tokens() const { return tokens_; }
  const std::vector<Slice>& slices() const { return slices_; }
  std::int64_t area() const;
  /// Whether no query sees a later key.
  bool is_causal() const;
  /// 64-bit digest of tokens and slices; equal masks have equal digests.
  std::uint64_t digest() const;
  bool operator==(const Mask& other) const {
    return tokens_ == other.tokens_ && slices_ == other.slices_;
  }

  /// The slices that may meet the queries [q_begin, q_end) and keys [k_begin, k_end): all that do
  /// lie in the returned part of slices(). Exact for masks whose keys rise with their queries.
  /// `from`: where a search for the same keys and no later queries began. Cost: logarithmic in the
  /// distance from there and in the slices found.
  std::span<const Slice> slices_near(std::int64_t q_begin, std::int64_t q_end, std::int64_t k_begin,
                                     std::int64_t k_end, std::int64_t from = 0) const;
  /// The number of the first slice, from number `from`, such that it or one before it ends after
  /// query q.
  std::int64_t first_ending_after(std::int64_t q, std::int64_t from) const;

 private:
  Mask(std::int64_t tokens, std::vector<Slice> slices);

  std::int64_t tokens_ = 0;
  std::vector<Slice> slices_;  // sorted by q_begin, then k_begin
  // Monotone bounds over slices_, for slices_near.
  std::vector<std::int64_t> q_end_so_far_, k_end_so_far_, k_begin_from_here_;
};

/// The import form of slice types: 0 full; 1 causal, the right edge follows the row and ends at the
/// bottom right corner; 2 inverse causal, the left edge follows the row and starts at the top left
/// corner; 3 both.
Slice slice_from_type(std::int64_t q_begin, std::int64_t q_end, std::int64_t k_begin,
                      std::int64_t k_end, int type);

/// What the rows of a query view see of the rows of a key view, in row numbers of the two views.
/// Row r of a view is the r-th token of its runs. The only place where masks and layouts meet.
/// Exact, disjoint, tightened, sorted by q_begin, then k_begin; bands that together form one band
/// come as one. Throws Error(config) when two runs of different strides share a visible pair and an
/// edge of its band runs between more than one token of each: the edge would not be a diagonal.
/// Cost: O(log n + output) for a run of stride 1 against sorted runs; a strided run visits the
/// slices in its span.
std::vector<Slice> cut(const Mask& mask, std::span<const Run> q_runs, std::span<const Run> k_runs);
/// Whether cut() would return anything; stops at the first visible pair. Never throws for strides.
bool any_visible(const Mask& mask, std::span<const Run> q_runs, std::span<const Run> k_runs);

}  // namespace longhaul::attention
