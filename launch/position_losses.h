#pragma once
// Losses of rows by their position: what eval prints.

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/io/sequences.h"

namespace longhaul::launch {

/// Labels whose rows stand at positions from `begin` up to the next bucket's.
struct PositionLoss {
  std::int64_t begin = 0;
  std::int64_t labels = 0;   ///< those of weight 0 do not count
  std::int64_t correct = 0;  ///< of them, where the largest logit is the label's
  double weight = 0;         ///< of the labels
  double loss_sum = 0;       ///< nats, each label's by its weight

  /// Nats a token; NaN without labels.
  double loss() const;
  double accuracy() const;
  bool operator==(const PositionLoss&) const = default;
};

/// Adds up what ranks evaluate, in the order in which it is added: equal bits on equal grids.
class PositionLosses {
 public:
  /// Where buckets begin: 0, then rising.
  explicit PositionLosses(std::span<const std::int64_t> begins);

  /// Rows, and of each the unweighted loss and whether it was right (models::Evaluation).
  void add(const runtime::Rows& rows, std::span<const float> row_loss,
           std::span<const std::uint8_t> row_correct);

  /// For sums over ranks, and what those add.
  std::vector<double> numbers() const;
  void add_numbers(std::span<const double> numbers);
  /// The same buckets, with nothing in them.
  PositionLosses empty_copy() const;

  std::span<const PositionLoss> buckets() const { return buckets_; }
  PositionLoss all() const;

 private:
  std::vector<PositionLoss> buckets_;
};

/// 0, 128, 256, 512, ... below seq_len.
std::vector<std::int64_t> position_buckets(std::int64_t seq_len);

}  // namespace longhaul::launch
