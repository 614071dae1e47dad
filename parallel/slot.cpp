#include "parallel/slot.h"

namespace longhaul::parallel {

using runtime::DType;

std::int64_t Record::cell_bytes(std::optional<DType> wire_dtype) const {
  std::int64_t bytes = 0;
  for (const Field& field : fields) {
    const DType dtype =
        field.dtype == DType::float32 ? wire_dtype.value_or(DType::float32) : field.dtype;
    bytes += field.width * runtime::size_bytes(dtype);
  }
  return bytes;
}

std::int64_t field_bytes(const Slot& slot, const Field& field) {
  return aligned(slot.rows * slot.heads * field.width * runtime::size_bytes(field.dtype));
}

std::int64_t slot_bytes(const Slot& slot) {
  std::int64_t bytes = 0;
  for (const Field& field : slot.record.fields) bytes += field_bytes(slot, field);
  return bytes;
}

View rows_of(View view, std::int64_t begin, std::int64_t end) {
  view.row_end = view.row_begin + end;
  view.row_begin += begin;
  return view;
}

View heads_of(View view, int begin, int end) {
  view.head_end = view.head_begin + end;
  view.head_begin += begin;
  return view;
}

std::optional<View> heads_of(const std::optional<View>& view, int begin, int end) {
  return view ? std::optional(heads_of(*view, begin, end)) : std::nullopt;
}

bool same_extent(const View& a, const View& b) {
  return a.rows() == b.rows() && a.heads() == b.heads();
}

bool overlaps(const View& a, const View& b) {
  return a.slot == b.slot && a.row_begin < b.row_end && b.row_begin < a.row_end &&
         a.head_begin < b.head_end && b.head_begin < a.head_end;
}

bool covers(const View& outer, const View& inner) {
  return outer.slot == inner.slot && outer.row_begin <= inner.row_begin &&
         inner.row_end <= outer.row_end && outer.head_begin <= inner.head_begin &&
         inner.head_end <= outer.head_end;
}

}  // namespace longhaul::parallel
