#pragma once
// The nearest known word to a misspelled one.

#include <span>
#include <string>
#include <string_view>

namespace longhaul::runtime {

/// Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other,
/// ignoring case (optimal string alignment).
std::size_t edit_distance(std::string_view a, std::string_view b);

struct Suggestion {
  std::string word;
  std::size_t distance = 0;
  /// Near enough to be a typo, rather than merely the least distant.
  bool close = false;
};
/// The candidate with the least distance; the first of equals. Empty word without candidates.
Suggestion nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace longhaul::runtime
