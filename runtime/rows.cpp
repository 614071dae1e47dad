#include "runtime/rows.h"

#include <algorithm>

#include "runtime/tensor_impl.h"

namespace longhaul::runtime {
namespace {

void check_rows(const char* what, ConstTensorView src, ConstTensorView dst, const RowList& rows,
                const Stream& stream) {
  LONGHAUL_CHECK(src.dims() == dst.dims() && src.dims() >= 1 &&
                     std::ranges::equal(src.sizes().subspan(1), dst.sizes().subspan(1)),
                 what, " of rows between views of ", src.dims(), " and ", dst.dims(),
                 " dims whose rows differ");
  LONGHAUL_CHECK(src.device() == stream.device() && dst.device() == stream.device(), what,
                 " of rows on stream '", stream.name(), "' of memory on another device");
  LONGHAUL_CHECK(rows.moves != nullptr, what, " of rows without a list");
}

}  // namespace

RowMoves::RowMoves(std::span<const RowMove> moves) {
  for (const RowMove& move : moves) {
    LONGHAUL_CHECK(move.from >= 0 && move.to >= 0 && move.count >= 0, "a move of ", move.count,
                   " rows from ", move.from, " to ", move.to);
    if (move.count == 0) continue;
    if (!entries_.empty()) {
      Entry& last = entries_.back();
      if (last.from + last.count == move.from && last.to + last.count == move.to) {
        last.count += move.count;
        rows_ += move.count;
        continue;
      }
    }
    entries_.push_back({rows_, move.from, move.to, move.count});
    rows_ += move.count;
  }
}

void copy_rows(ConstTensorView src, TensorView dst, const RowList& rows, const Stream& stream) {
  check_rows("copy", src, dst, rows, stream);
  if (stream.device().kind == DeviceKind::cuda)
    return detail::cuda_copy_rows(src, dst, rows, stream);
  stream.cpu_task([src, dst, moves = rows.moves] {
    for (const RowMoves::Entry& move : moves->entries()) {
      detail::copy_now(src.slice(0, move.from, move.from + move.count),
                       dst.slice(0, move.to, move.to + move.count));
    }
  });
}

void accumulate_rows(ConstTensorView src, TensorView dst, const RowList& rows,
                     const Stream& stream) {
  check_rows("accumulate", src, dst, rows, stream);
  LONGHAUL_CHECK(src.dtype() == DType::float32 && dst.dtype() == DType::float32,
                 "accumulate of rows needs float32; got ", name(src.dtype()), " and ",
                 name(dst.dtype()));
  if (stream.device().kind == DeviceKind::cuda)
    return detail::cuda_accumulate_rows(src, dst, rows, stream);
  stream.cpu_task([src, dst, moves = rows.moves] {
    for (const RowMoves::Entry& move : moves->entries()) {
      detail::accumulate_now(src.slice(0, move.from, move.from + move.count),
                             dst.slice(0, move.to, move.to + move.count));
    }
  });
}

}  // namespace longhaul::runtime
