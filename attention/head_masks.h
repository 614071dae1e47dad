#pragma once
// A mask for each query head. Most attention gives all heads one mask; shifted sparse attention and
// head-wise block sparsity give them several.

#include <cstdint>
#include <span>
#include <vector>

#include "attention/mask.h"

namespace longhaul::attention {

/// The masks of a layer's query heads. Neighbouring heads that share a mask form a group, which is
/// what schedules and kernels see.
class HeadMasks {
 public:
  struct Group {
    int head_begin = 0, head_end = 0;  ///< query heads; kAllHeads as the end of a mask for all
    Mask mask;
  };
  static constexpr int kAllHeads = 1 << 30;

  HeadMasks() = default;
  /// All heads share the mask, however many there are.
  HeadMasks(Mask mask);  // NOLINT(google-explicit-constructor): a mask is the common case
  /// masks[h] is query head h's. Throws Error(data) when they differ in tokens or there are none.
  static HeadMasks per_head(std::vector<Mask> masks);
  /// masks[g] is that of the next heads[g] query heads. Throws Error(data) likewise.
  static HeadMasks in_groups(std::vector<Mask> masks, std::span<const int> heads);

  std::int64_t tokens() const { return tokens_; }
  bool shared() const { return groups_.size() == 1 && groups_[0].head_end == kAllHeads; }
  /// Disjoint, in head order, from head 0.
  const std::vector<Group>& groups() const { return groups_; }
  /// One more than the last head that has a mask; kAllHeads when all share one.
  int heads() const { return groups_.empty() ? 0 : groups_.back().head_end; }
  const Mask& of(int head) const;
  /// Visible pairs summed over `heads` query heads. Throws Error(data) when other than the masks'.
  std::int64_t area(int heads) const;
  std::uint64_t digest() const;
  /// Every head's mask `copies` times along the diagonal.
  HeadMasks repeated(std::int64_t copies) const;

 private:
  std::int64_t tokens_ = 0;
  std::vector<Group> groups_;
};

/// Offsets of the finest cut of the tokens such that no head sees a pair across a cut: the
/// documents of packed documents, the whole of a causal sequence, the sequences of a batch. Rises
/// strictly from 0 to the token count; {0} without tokens. A token that shares no pair with another
/// is a part of its own. Cost: O(slices log slices + parts).
std::vector<std::int64_t> independent_parts(const HeadMasks& masks);

}  // namespace longhaul::attention
