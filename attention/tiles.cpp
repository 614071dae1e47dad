#include "attention/tiles.h"

#include <algorithm>

namespace longhaul::attention {

std::span<const Span> TileRows::spans(std::int64_t row) const {
  if (full_) return {&whole_, 1};
  return {spans_ + first_[row], static_cast<std::size_t>(count_[row])};
}

Span TileRows::hull(std::int64_t row, std::int64_t count) const {
  if (full_) return whole_;
  Span hull{whole_.end, 0};
  for (std::int64_t r = row; r < row + count; ++r) {
    for (const Span& span : spans(r))
      hull = {std::min(hull.begin, span.begin), std::max(hull.end, span.end)};
  }
  return hull.empty() ? Span{} : hull;
}

void TileRows::hide(std::int64_t row) {
  if (full_) {
    full_ = false;
    for (std::int64_t r = 0; r < rows_; ++r) {
      first_[r] = static_cast<std::int32_t>(r);
      count_[r] = 1;
      spans_[r] = whole_;
    }
  }
  count_[row] = 0;
}

TilePlan::TilePlan(std::span<const Slice> bands, std::int64_t q_rows, std::int64_t k_rows,
                   std::int64_t q_block, std::int64_t k_block)
    : q_rows_(q_rows),
      k_rows_(k_rows),
      q_block_(q_block),
      k_block_(k_block),
      q_blocks_((q_rows + q_block - 1) / q_block),
      k_blocks_((k_rows + k_block - 1) / k_block),
      first_band_(static_cast<std::size_t>(q_blocks_) + 1),
      kinds_(static_cast<std::size_t>(q_blocks_ * k_blocks_), TileKind::empty),
      work_(static_cast<std::size_t>(q_blocks_)),
      used_(static_cast<std::size_t>(k_blocks_)),
      most_spans_(q_block) {
  // Bands by row of tiles: count, place.
  for (const Slice& band : bands) {
    for (std::int64_t qb = band.q_begin / q_block_; qb * q_block_ < band.q_end; ++qb) {
      ++first_band_[static_cast<std::size_t>(qb) + 1];
    }
  }
  for (std::size_t qb = 1; qb < first_band_.size(); ++qb) first_band_[qb] += first_band_[qb - 1];
  bands_.resize(static_cast<std::size_t>(first_band_.back()));
  std::vector<std::int64_t> next(first_band_.begin(), first_band_.end() - 1);
  for (const Slice& band : bands) {
    for (std::int64_t qb = band.q_begin / q_block_; qb * q_block_ < band.q_end; ++qb) {
      const Slice rows{qb * q_block_, std::min((qb + 1) * q_block_, q_rows_), 0, k_rows_};
      bands_[static_cast<std::size_t>(next[static_cast<std::size_t>(qb)]++)] =
          intersect(band, rows);
    }
  }
  std::vector<std::int64_t> visible(static_cast<std::size_t>(k_blocks_));
  for (std::int64_t qb = 0; qb < q_blocks_; ++qb) {
    std::fill(visible.begin(), visible.end(), 0);
    const auto row = static_cast<std::size_t>(qb);
    std::int64_t spans = 0;
    for (std::int64_t b = first_band_[row]; b < first_band_[row + 1]; ++b) {
      const Slice& band = bands_[static_cast<std::size_t>(b)];
      spans += band.q_end - band.q_begin;
      for (std::int64_t kb = band.k_begin / k_block_; kb * k_block_ < band.k_end; ++kb) {
        visible[static_cast<std::size_t>(kb)] += area(intersect(band, box(qb, kb)));
      }
    }
    most_spans_ = std::max(most_spans_, spans);
    for (std::int64_t kb = 0; kb < k_blocks_; ++kb) {
      const std::int64_t pairs = visible[static_cast<std::size_t>(kb)];
      if (pairs == 0) continue;
      work_[row] += pairs;
      used_[static_cast<std::size_t>(kb)] = 1;
      kinds_[static_cast<std::size_t>(qb * k_blocks_ + kb)] =
          pairs == q_count(qb) * k_count(kb) ? TileKind::full : TileKind::partial;
    }
  }
}

Slice TilePlan::box(std::int64_t qb, std::int64_t kb) const {
  return {qb * q_block_, qb * q_block_ + q_count(qb), kb * k_block_, kb * k_block_ + k_count(kb)};
}

std::int64_t TilePlan::tiles_before(std::int64_t qb, std::int64_t kb) const {
  const auto row = kinds_.begin() + qb * k_blocks_;
  return kb - std::count(row, row + kb, TileKind::empty);
}

void TilePlan::describe(std::int64_t qb, std::int64_t kb, TileRows& tile) const {
  tile.rows_ = q_count(qb);
  tile.keys_ = k_count(kb);
  tile.full_ = kind(qb, kb) == TileKind::full;
  tile.whole_ = {0, static_cast<std::int32_t>(tile.keys_)};
  if (tile.full_) return;

  std::fill_n(tile.count_, tile.rows_, 0);
  const Slice here = box(qb, kb);
  const auto first_band = static_cast<std::size_t>(first_band_[static_cast<std::size_t>(qb)]);
  const auto last_band = static_cast<std::size_t>(first_band_[static_cast<std::size_t>(qb) + 1]);
  const auto for_each_span = [&](const auto& visit) {
    for (std::size_t b = first_band; b < last_band; ++b) {
      const Slice part = intersect(bands_[b], here);
      for (std::int64_t i = part.q_begin; i < part.q_end; ++i) {
        visit(i - here.q_begin, Span{static_cast<std::int32_t>(part.key_begin(i) - here.k_begin),
                                     static_cast<std::int32_t>(part.key_end(i) - here.k_begin)});
      }
    }
  };
  for_each_span([&](std::int64_t row, Span) { ++tile.count_[row]; });
  std::int32_t total = 0;
  for (std::int64_t row = 0; row < tile.rows_; ++row) {
    tile.first_[row] = total;
    total += tile.count_[row];
  }
  std::fill_n(tile.count_, tile.rows_, 0);
  for_each_span([&](std::int64_t row, Span span) {  // insertion keeps a row's few spans rising
    Span* const at = tile.spans_ + tile.first_[row];
    std::int32_t n = tile.count_[row]++;
    for (; n > 0 && at[n - 1].begin > span.begin; --n) at[n] = at[n - 1];
    at[n] = span;
  });
}

}  // namespace longhaul::attention
