#pragma once
// A block call cut into tiles of q_block rows x k_block keys. Tiles are known as empty, full or
// partial from the bands alone; only partial ones look at single rows.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/mask.h"

namespace longhaul::attention {

enum class TileKind : std::uint8_t { empty, partial, full };

/// Keys [begin, end) of a tile, counted from its first key.
struct Span {
  std::int32_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
  bool operator==(const Span&) const = default;
};

/// What the rows of one tile see. Its arrays are its owner's: `first` and `count` for the rows
/// of a tile, `spans` for TilePlan::most_spans().
class TileRows {
 public:
  TileRows(std::int32_t* first, std::int32_t* count, Span* spans)
      : first_(first), count_(count), spans_(spans) {}
  std::int64_t rows() const { return rows_; }
  std::int64_t keys() const { return keys_; }
  bool full() const { return full_; }
  /// Visible keys of a row, disjoint and rising.
  std::span<const Span> spans(std::int64_t row) const;
  /// The keys that rows [row, row + count) see lie in this span.
  Span hull(std::int64_t row, std::int64_t count) const;
  /// Takes everything from a row.
  void hide(std::int64_t row);

 private:
  friend class TilePlan;
  std::int64_t rows_ = 0, keys_ = 0;
  bool full_ = false;
  Span whole_;
  std::int32_t *first_, *count_;  // spans of row r: [first_[r], first_[r] + count_[r])
  Span* spans_;
};

class TilePlan {
 public:
  /// `bands`: disjoint, inside the views, tightened, sorted by q_begin.
  TilePlan(std::span<const Slice> bands, std::int64_t q_rows, std::int64_t k_rows,
           std::int64_t q_block, std::int64_t k_block);

  std::int64_t q_blocks() const { return q_blocks_; }
  std::int64_t k_blocks() const { return k_blocks_; }
  std::int64_t q_count(std::int64_t qb) const {
    return std::min(q_block_, q_rows_ - qb * q_block_);
  }
  std::int64_t k_count(std::int64_t kb) const {
    return std::min(k_block_, k_rows_ - kb * k_block_);
  }
  TileKind kind(std::int64_t qb, std::int64_t kb) const {
    return kinds_[static_cast<std::size_t>(qb * k_blocks_ + kb)];
  }
  /// Visible pairs of a row of tiles.
  std::int64_t work(std::int64_t qb) const { return work_[static_cast<std::size_t>(qb)]; }
  /// Tiles (qb, before kb) that are not empty.
  std::int64_t tiles_before(std::int64_t qb, std::int64_t kb) const;
  /// Whether any query sees the block.
  bool used(std::int64_t kb) const { return used_[static_cast<std::size_t>(kb)] != 0; }
  /// Spans that the rows of a tile have at most, whichever it is: what a TileRows needs room for.
  std::int64_t most_spans() const { return most_spans_; }
  /// Fills `tile` for a tile that is not empty.
  void describe(std::int64_t qb, std::int64_t kb, TileRows& tile) const;

 private:
  Slice box(std::int64_t qb, std::int64_t kb) const;

  std::int64_t q_rows_, k_rows_, q_block_, k_block_, q_blocks_, k_blocks_;
  std::vector<std::int64_t> first_band_;  // of a row of tiles, in bands_
  std::vector<Slice> bands_;              // grouped by row of tiles, cut to it
  std::vector<TileKind> kinds_;
  std::vector<std::int64_t> work_;
  std::vector<std::uint8_t> used_;
  std::int64_t most_spans_;
};

}  // namespace longhaul::attention
