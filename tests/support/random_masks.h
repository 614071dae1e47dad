#pragma once
// Random slices and the bitmap that says, pair by pair, what they mean.

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "attention/mask.h"

namespace longhaul::test {

/// visible(i, j): pair by pair, from the definition in attention/mask.h.
class Bitmap {
 public:
  Bitmap(std::int64_t queries, std::int64_t keys)
      : keys_(keys), counts_(static_cast<std::size_t>(queries * keys)) {}
  Bitmap(std::int64_t queries, std::int64_t keys, std::span<const attention::Slice> slices);

  std::uint8_t& at(std::int64_t query, std::int64_t key) {
    return counts_[static_cast<std::size_t>(query * keys_ + key)];
  }
  std::uint8_t at(std::int64_t query, std::int64_t key) const {
    return counts_[static_cast<std::size_t>(query * keys_ + key)];
  }
  /// Adds 1 to every pair of the slice.
  void add(const attention::Slice& slice);
  std::int64_t sum() const;
  std::uint8_t max() const;
  bool operator==(const Bitmap&) const = default;

 private:
  std::int64_t keys_;
  std::vector<std::uint8_t> counts_;
};

/// One slice with any kind of band, possibly empty, inside queries x keys.
attention::Slice random_slice(std::int64_t queries, std::int64_t keys, std::mt19937& random);
/// The same with at most 8 queries and 8 keys, so that many fit.
attention::Slice random_small_slice(std::int64_t queries, std::int64_t keys, std::mt19937& random);
/// Up to `attempts` disjoint slices.
std::vector<attention::Slice> random_disjoint_slices(std::int64_t queries, std::int64_t keys,
                                                     int attempts, std::mt19937& random);
std::vector<attention::Slice> random_small_disjoint_slices(std::int64_t queries, std::int64_t keys,
                                                           int attempts, std::mt19937& random);

}  // namespace longhaul::test
