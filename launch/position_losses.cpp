#include "launch/position_losses.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace longhaul::launch {

namespace {

constexpr std::int64_t kFirstBucket = 128;  // positions
constexpr std::size_t kNumbers = 4;         // of a bucket

}  // namespace

double PositionLoss::loss() const { return labels > 0 ? loss_sum / weight : std::nan(""); }

double PositionLoss::accuracy() const {
  return labels > 0 ? static_cast<double>(correct) / static_cast<double>(labels) : std::nan("");
}

PositionLosses::PositionLosses(std::span<const std::int64_t> begins) {
  LONGHAUL_CHECK(!begins.empty() && begins[0] == 0, "buckets of positions begin at 0");
  for (const std::int64_t begin : begins) {
    LONGHAUL_CHECK(buckets_.empty() || begin > buckets_.back().begin, "a bucket at ", begin,
                   " behind one at ", buckets_.back().begin);
    buckets_.push_back({.begin = begin});
  }
}

void PositionLosses::add(const runtime::Rows& rows, std::span<const float> row_loss,
                         std::span<const std::uint8_t> row_correct) {
  LONGHAUL_CHECK(row_loss.size() == rows.labels.size() && row_correct.size() == rows.labels.size(),
                 "losses of ", row_loss.size(), " rows for ", rows.labels.size());
  for (std::size_t row = 0; row < rows.labels.size(); ++row) {
    const double weight =
        rows.label_weights.empty() ? 1.0 : static_cast<double>(rows.label_weights[row]);
    if (rows.labels[row] < 0 || weight == 0) continue;
    const auto behind = std::ranges::upper_bound(
        buckets_, static_cast<std::int64_t>(rows.positions[row]), {}, &PositionLoss::begin);
    PositionLoss& bucket = *std::prev(behind);
    ++bucket.labels;
    bucket.correct += row_correct[row];
    bucket.weight += weight;
    bucket.loss_sum += weight * static_cast<double>(row_loss[row]);
  }
}

std::vector<double> PositionLosses::numbers() const {
  std::vector<double> numbers;
  for (const PositionLoss& bucket : buckets_) {
    numbers.insert(numbers.end(),
                   {static_cast<double>(bucket.labels), static_cast<double>(bucket.correct),
                    bucket.weight, bucket.loss_sum});
  }
  return numbers;
}

void PositionLosses::add_numbers(std::span<const double> numbers) {
  LONGHAUL_CHECK(numbers.size() == kNumbers * buckets_.size(), numbers.size(), " numbers of ",
                 buckets_.size(), " buckets");
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    const auto of = numbers.subspan(kNumbers * i, kNumbers);
    buckets_[i].labels += static_cast<std::int64_t>(of[0]);
    buckets_[i].correct += static_cast<std::int64_t>(of[1]);
    buckets_[i].weight += of[2];
    buckets_[i].loss_sum += of[3];
  }
}

PositionLosses PositionLosses::empty_copy() const {
  PositionLosses empty = *this;
  for (PositionLoss& bucket : empty.buckets_) bucket = {.begin = bucket.begin};
  return empty;
}

PositionLoss PositionLosses::all() const {
  PositionLoss all;
  for (const PositionLoss& bucket : buckets_) {
    all.labels += bucket.labels;
    all.correct += bucket.correct;
    all.weight += bucket.weight;
    all.loss_sum += bucket.loss_sum;
  }
  return all;
}

std::vector<std::int64_t> position_buckets(std::int64_t seq_len) {
  std::vector<std::int64_t> begins{0};
  for (std::int64_t begin = kFirstBucket; begin < seq_len; begin *= 2) begins.push_back(begin);
  return begins;
}

}  // namespace longhaul::launch
