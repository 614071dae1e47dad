#pragma once
// Lists of rows: what a gather, a scatter or a sum over scattered rows does in one operation,
// however many intervals there are.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::runtime {

/// Rows [from, from + count) of one view go to rows [to, to + count) of another.
struct RowMove {
  std::int64_t from = 0, to = 0, count = 0;
  bool operator==(const RowMove&) const = default;
};

/// A list of moves, in order. Immutable: made once, used by many operations on any thread.
class RowMoves {
 public:
  /// Neighbouring moves become one, empty ones none.
  explicit RowMoves(std::span<const RowMove> moves);

  /// A move and the number of the first of its rows among all rows of the list: what kernels
  /// search.
  struct Entry {
    std::int64_t first, from, to, count;
  };
  std::span<const Entry> entries() const { return entries_; }
  std::int64_t rows() const { return rows_; }
  /// entries() as bytes: what a device needs a copy of.
  std::span<const std::byte> table() const { return std::as_bytes(entries()); }

 private:
  std::vector<Entry> entries_;
  std::int64_t rows_ = 0;
};

/// A list in use: the operation keeps `moves` alive; `table` is the device's copy of its table, not
/// read on the CPU.
struct RowList {
  std::shared_ptr<const RowMoves> moves;
  const std::byte* table = nullptr;
};

/// dst[to + i] <- src[from + i] for every move, as copy() for its elements. Views have 2 or 3 dims,
/// [rows, heads(, width)], equal but for their rows; the moves stay inside both.
void copy_rows(ConstTensorView src, TensorView dst, const RowList& rows, const Stream& stream);
/// dst[to + i] += src[from + i], float32. No row of dst is in two moves.
void accumulate_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                     const Stream& stream);

}  // namespace longhaul::runtime
