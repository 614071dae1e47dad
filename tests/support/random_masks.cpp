#include "tests/support/random_masks.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace longhaul::test {

using attention::Slice;

Bitmap::Bitmap(std::int64_t queries, std::int64_t keys, std::span<const Slice> slices)
    : Bitmap(queries, keys) {
  for (const Slice& slice : slices) add(slice);
}

void Bitmap::add(const Slice& slice) {
  for (std::int64_t i = slice.q_begin; i < slice.q_end; ++i) {
    for (std::int64_t j = slice.k_begin; j < slice.k_end; ++j) {
      if (slice.lo <= j - i && j - i <= slice.hi) ++at(i, j);
    }
  }
}

std::int64_t Bitmap::sum() const {
  return std::accumulate(counts_.begin(), counts_.end(), std::int64_t{0});
}

std::uint8_t Bitmap::max() const {
  return counts_.empty() ? std::uint8_t{0} : *std::max_element(counts_.begin(), counts_.end());
}

namespace {
std::int64_t pick(std::int64_t low, std::int64_t high, std::mt19937& random) {
  return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
}
}  // namespace

Slice random_slice(std::int64_t queries, std::int64_t keys, std::mt19937& random) {
  Slice slice;
  std::tie(slice.q_begin, slice.q_end) =
      std::minmax({pick(0, queries, random), pick(0, queries, random)});
  std::tie(slice.k_begin, slice.k_end) =
      std::minmax({pick(0, keys, random), pick(0, keys, random)});
  // Most edges cross the rectangle; some miss it on either side.
  const std::int64_t lowest = slice.k_begin - slice.q_end, highest = slice.k_end - slice.q_begin;
  const std::int64_t middle = (lowest + highest) / 2;
  if (random() % 2 == 0) slice.lo = pick(lowest - 1, middle + 1, random);
  if (random() % 2 == 0) slice.hi = pick(middle - 1, highest + 1, random);
  return slice;
}

Slice random_small_slice(std::int64_t queries, std::int64_t keys, std::mt19937& random) {
  const std::int64_t rows = pick(0, std::min<std::int64_t>(queries, 8), random),
                     columns = pick(0, std::min<std::int64_t>(keys, 8), random);
  const std::int64_t q = pick(0, queries - rows, random), k = pick(0, keys - columns, random);
  Slice slice = random_slice(rows, columns, random);
  slice.q_begin += q;
  slice.q_end += q;
  slice.k_begin += k;
  slice.k_end += k;
  if (slice.lo > -attention::kUnbounded) slice.lo += k - q;
  if (slice.hi < attention::kUnbounded) slice.hi += k - q;
  return slice;
}

namespace {
std::vector<Slice> disjoint_of(std::int64_t queries, std::int64_t keys, int attempts,
                               std::mt19937& random,
                               Slice (*draw)(std::int64_t, std::int64_t, std::mt19937&)) {
  std::vector<Slice> slices;
  Bitmap taken(queries, keys);
  for (int attempt = 0; attempt < attempts; ++attempt) {
    const Slice slice = draw(queries, keys, random);
    bool free = true;
    for (std::int64_t i = slice.q_begin; i < slice.q_end && free; ++i) {
      for (std::int64_t j = slice.k_begin; j < slice.k_end && free; ++j) {
        free = taken.at(i, j) == 0 || j - i < slice.lo || j - i > slice.hi;
      }
    }
    if (!free) continue;
    taken.add(slice);
    slices.push_back(slice);
  }
  return slices;
}
}  // namespace

std::vector<Slice> random_disjoint_slices(std::int64_t queries, std::int64_t keys, int attempts,
                                          std::mt19937& random) {
  return disjoint_of(queries, keys, attempts, random, random_slice);
}

std::vector<Slice> random_small_disjoint_slices(std::int64_t queries, std::int64_t keys,
                                                int attempts, std::mt19937& random) {
  return disjoint_of(queries, keys, attempts, random, random_small_slice);
}

}  // namespace longhaul::test
