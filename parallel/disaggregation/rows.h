#pragma once
// Rows of a causal document and their areas, exactly; internal to the planner.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace longhaul::parallel {

/// a / b < c / d, exactly; b and d above 0.
inline bool less_ratio(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
  return static_cast<__int128>(a) * d < static_cast<__int128>(c) * b;
}

/// Pairs of rows [begin, end) of a document with the keys that they see.
inline std::int64_t causal_area(std::int64_t begin, std::int64_t end) {
  return (end - begin) * end - (end - begin) * (end - begin - 1) / 2;
}

/// The largest number whose square is at most `value`, of 0 to 2^62.
inline std::int64_t floor_root(std::int64_t value) {
  auto root = static_cast<std::int64_t>(std::sqrt(static_cast<double>(value)));
  while (root * root > value) --root;
  while ((root + 1) * (root + 1) <= value) ++root;
  return root;
}

/// The first row such that rows from there to `end` have at most so much area; `end` where even the
/// last has more.
inline std::int64_t first_row_within(std::int64_t end, std::int64_t area) {
  if (causal_area(0, end) <= area) return 0;
  // n rows have n (2 end + 1 - n) / 2 pairs.
  const std::int64_t twice = 2 * end + 1;
  const std::int64_t root = floor_root(std::max<std::int64_t>(0, twice * twice - 8 * area));
  std::int64_t row = std::clamp<std::int64_t>(end - (twice - root) / 2, 0, end);
  while (causal_area(row, end) > area) ++row;
  while (row > 0 && causal_area(row - 1, end) <= area) --row;
  return row;
}
/// The last row such that rows from there to `end` have at least so much area; 0 where all have
/// less.
inline std::int64_t last_row_with(std::int64_t end, std::int64_t area) {
  const std::int64_t row = first_row_within(end, area);
  return row > 0 && causal_area(row, end) < area ? row - 1 : row;
}

}  // namespace longhaul::parallel
