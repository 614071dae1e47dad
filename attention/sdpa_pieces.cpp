#include "attention/sdpa_pieces.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

namespace longhaul::attention {

Slice slice_of(const Piece& p) {
  const std::int64_t corner = p.k_begin - p.q_begin;
  const std::int64_t diagonal =
      corner + (p.mask.diagonal == Diagonal::bottom_right ? p.k_rows() - p.q_rows() : 0);
  return {p.q_begin,
          p.q_end,
          p.k_begin,
          p.k_end,
          p.mask.left < 0 ? -kUnbounded : diagonal + 1 - p.mask.left,
          p.mask.right < 0 ? kUnbounded : diagonal + p.mask.right};
}

namespace {

/// The smallest slice around both, where it holds nothing else.
std::optional<Slice> joined(const Slice& a, const Slice& b) {
  const Slice around = {std::min(a.q_begin, b.q_begin), std::max(a.q_end, b.q_end),
                        std::min(a.k_begin, b.k_begin), std::max(a.k_end, b.k_end),
                        std::min(a.lo, b.lo),           std::max(a.hi, b.hi)};
  if (area(around) != area(a) + area(b)) return std::nullopt;
  return tightened(around);
}

/// Slices by the row, or the key, at which they end.
class Ends {
 public:
  void add(std::int64_t end, std::size_t index) { of_.emplace(end, index); }
  void remove(std::int64_t end, std::size_t index) {
    const auto [first, last] = of_.equal_range(end);
    of_.erase(std::find_if(first, last, [&](const auto& entry) { return entry.second == index; }));
  }
  /// The first one that body(index) takes.
  template <class Body>
  std::optional<std::size_t> find(std::int64_t end, const Body& body) const {
    const auto [first, last] = of_.equal_range(end);
    for (auto at = first; at != last; ++at)
      if (body(at->second)) return at->second;
    return std::nullopt;
  }

 private:
  std::unordered_multimap<std::int64_t, std::size_t> of_;
};

}  // namespace

std::vector<Slice> coalesced(const std::vector<Slice>& bands) {
  std::vector<Slice> all;
  std::vector<bool> gone;
  Ends q_ends, k_ends;
  for (Slice band : bands) {
    // What joins it ends where it begins: above it, or to its left.
    const auto join = [&](std::size_t with) {
      const auto both = joined(all[with], band);
      if (both) band = *both;
      return both.has_value();
    };
    for (;;) {
      auto with = q_ends.find(band.q_begin, join);
      if (!with) with = k_ends.find(band.k_begin, join);
      if (!with) break;
      gone[*with] = true;
      q_ends.remove(all[*with].q_end, *with);
      k_ends.remove(all[*with].k_end, *with);
    }
    q_ends.add(band.q_end, all.size());
    k_ends.add(band.k_end, all.size());
    all.push_back(band);
    gone.push_back(false);
  }
  std::vector<Slice> kept;
  for (std::size_t i = 0; i < all.size(); ++i)
    if (!gone[i]) kept.push_back(all[i]);
  std::ranges::sort(kept, [](const Slice& a, const Slice& b) {
    return a.q_begin != b.q_begin ? a.q_begin < b.q_begin : a.k_begin < b.k_begin;
  });
  return kept;
}

namespace {

void add_pieces(const Slice& given, std::vector<Piece>& to) {
  const Slice s = tightened(given);
  const std::int64_t rows = s.q_end - s.q_begin, keys = s.k_end - s.k_begin;
  if (rows == 0) return;
  // From the top left corner. Tightened, so that every row sees a key and every key is seen:
  // lo <= 0 <= hi, and keys - rows <= hi.
  const std::int64_t corner = s.k_begin - s.q_begin, lo = s.lo - corner, hi = s.hi - corner;
  const bool cut_left = rows - 1 + lo > 0, cut_right = hi < keys - 1;
  const auto piece = [&](const SdpaMask& mask) {
    to.push_back({s.q_begin, s.q_end, s.k_begin, s.k_end, mask});
  };
  const auto split = [&](std::int64_t row) {
    Slice above = s, below = s;
    above.q_end = below.q_begin = s.q_begin + row;
    add_pieces(above, to);
    add_pieces(below, to);
  };
  if (!cut_left && !cut_right) return piece({});
  if (!cut_left) {
    // The last rows see all keys; the one before them still does.
    if (keys - hi < rows) return split(keys - hi);
    return piece({Diagonal::bottom_right, -1, 0});
  }
  if (!cut_right) {
    if (lo < 0) return split(-lo);  // the first rows see all keys
    return piece({Diagonal::top_left, 1, -1});
  }
  if (rows > keys) return split(keys - 1 - hi);  // below, nothing is cut on the right
  if (hi == keys - rows) return piece({Diagonal::bottom_right, 1 - lo + keys - rows, 0});
  piece({Diagonal::top_left, 1 - lo, hi});
}

void divide(const Piece& piece, std::int64_t pairs, std::vector<Piece>& to) {
  if (piece.q_rows() * piece.k_rows() <= pairs) return to.push_back(piece);
  Slice first = slice_of(piece), second = first;
  if (piece.q_rows() >= piece.k_rows()) {
    first.q_end = second.q_begin = piece.q_begin + piece.q_rows() / 2;
  } else {
    first.k_end = second.k_begin = piece.k_begin + piece.k_rows() / 2;
  }
  std::vector<Piece> halves;
  add_pieces(first, halves);
  add_pieces(second, halves);
  for (const Piece& half : halves) divide(half, pairs, to);
}

}  // namespace

std::vector<Piece> pieces_of(const std::vector<Slice>& bands) {
  std::vector<Piece> pieces;
  for (const Slice& band : bands) add_pieces(band, pieces);
  return pieces;
}

std::vector<Piece> divided(const std::vector<Piece>& pieces, std::int64_t pairs) {
  std::vector<Piece> parts;
  for (const Piece& piece : pieces) divide(piece, pairs, parts);
  return parts;
}

}  // namespace longhaul::attention
