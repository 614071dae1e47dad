#pragma once
// Bands as cuDNN takes them: rectangles of rows that are full, causal or a window. Index logic
// alone; knows nothing of CUDA.

#include <cstdint>
#include <vector>

#include "attention/mask.h"

namespace longhaul::attention {

/// Where the diagonal of a rectangle runs: from its top left corner, or into its bottom right one.
enum class Diagonal : unsigned char { none, top_left, bottom_right };

/// A mask of cuDNN's: of a query i and a key j with distance d = j - i from the diagonal, those
/// with d > -left and d <= right. A negative bound is none: a left bound of L is L keys, the one on
/// the diagonal included.
struct SdpaMask {
  Diagonal diagonal = Diagonal::none;
  std::int64_t left = -1, right = -1;
  bool operator==(const SdpaMask&) const = default;
  auto operator<=>(const SdpaMask&) const = default;
};

/// A rectangle of a call's rows under such a mask. Every query sees a key and every key is seen; a
/// bound that does not cut is not there. Full; or cut on the right alone: into the bottom right
/// corner, no more queries than keys; or on the left alone: from the top left corner, no more
/// queries than keys; or on both sides, no more queries than keys.
struct Piece {
  std::int64_t q_begin = 0, q_end = 0, k_begin = 0, k_end = 0;
  SdpaMask mask = {};
  bool operator==(const Piece&) const = default;

  std::int64_t q_rows() const { return q_end - q_begin; }
  std::int64_t k_rows() const { return k_end - k_begin; }
  bool square() const { return q_rows() == k_rows(); }
};
Slice slice_of(const Piece& piece);

/// Disjoint slices, tightened and sorted, with those that together are one slice as one: two are
/// when the smallest slice around both has their area. A zigzag rank's own block comes as a
/// triangle, a rectangle and a triangle, and is one triangle.
std::vector<Slice> coalesced(const std::vector<Slice>& bands);

/// The pieces of disjoint, tightened slices, which together are exactly those.
std::vector<Piece> pieces_of(const std::vector<Slice>& bands);

/// The same pairs in pieces of at most `pairs` queries times keys each.
std::vector<Piece> divided(const std::vector<Piece>& pieces, std::int64_t pairs);

}  // namespace longhaul::attention
