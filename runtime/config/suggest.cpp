#include "runtime/config/suggest.h"

#include <algorithm>
#include <cctype>
#include <vector>

namespace longhaul::runtime {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  const auto same = [&](std::size_t i, std::size_t j) {
    return std::tolower(static_cast<unsigned char>(a[i])) ==
           std::tolower(static_cast<unsigned char>(b[j]));
  };
  std::vector<std::size_t> older, previous(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      row[j + 1] = std::min({previous[j + 1] + 1, row[j] + 1, previous[j] + (same(i, j) ? 0 : 1)});
      if (i > 0 && j > 0 && same(i, j - 1) && same(i - 1, j)) {
        row[j + 1] = std::min(row[j + 1], older[j - 1] + 1);
      }
    }
    older = previous;
    previous = row;
  }
  return previous[b.size()];
}

Suggestion nearest(std::string_view word, std::span<const std::string> candidates) {
  Suggestion best;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (best.word.empty() || distance < best.distance) best = {candidate, distance, false};
  }
  best.close =
      !best.word.empty() && best.distance <= std::max<std::size_t>(1, (word.size() + 1) / 3);
  return best;
}

}  // namespace longhaul::runtime
