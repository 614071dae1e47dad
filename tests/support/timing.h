#pragma once
// Bounds on wall time that a busy machine does not break.

#include <algorithm>
#include <limits>

namespace longhaul::test {

/// The least figure of up to three attempts, which stop at the first below `bound`: other work on
/// the machine can only make a figure larger, and a program that is too slow is so every time.
template <class Attempt>
double least_of_attempts(double bound, const Attempt& attempt) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3 && least >= bound; ++i) least = std::min(least, attempt(i));
  return least;
}

}  // namespace longhaul::test
