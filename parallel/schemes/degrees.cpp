#include "parallel/schemes/degrees.h"

#include <cstdint>

namespace longhaul::parallel {

std::vector<Degrees> legal_degrees(int ranks, const LegalDegrees& legal) {
  std::vector<Degrees> known;
  for (int inner = 1; inner <= ranks; ++inner) {
    if (ranks % inner == 0 && legal({ranks / inner, inner}))
      known.push_back({ranks / inner, inner});
  }
  return known;
}

std::optional<Degrees> choose_degrees(int ranks, const LegalDegrees& legal) {
  std::optional<Degrees> best;
  for (const Degrees& known : legal_degrees(ranks, legal)) {
    if (!best || static_cast<std::int64_t>(known.inner) * known.inner <= ranks) best = known;
  }
  return best;
}

}  // namespace longhaul::parallel
