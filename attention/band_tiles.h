#pragma once
// Which keys a tile of query rows sees, and which query rows a tile of keys is seen by: the index
// logic of the CUDA kernels, in a header so that it is also tested on the host. Private to
// attention/.

#include <cstdint>

#include "attention/mask.h"
#include "runtime/host_device.h"

namespace longhaul::attention::detail {

/// A Slice without default values, as shared memory and kernel arguments need it.
struct Band {
  std::int64_t q_begin, q_end, k_begin, k_end, lo, hi;
};
inline Band to_band(const Slice& slice) {
  return {slice.q_begin, slice.q_end, slice.k_begin, slice.k_end, slice.lo, slice.hi};
}

/// [begin, end); empty when begin >= end.
struct Interval {
  std::int64_t begin, end;
  LONGHAUL_HOST_DEVICE bool empty() const { return begin >= end; }
};

LONGHAUL_HOST_DEVICE inline std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
LONGHAUL_HOST_DEVICE inline std::int64_t larger(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}

/// The keys that at least one row of `rows` may see: none outside is visible. The edges move with
/// the row, so the first row sees furthest left and the last one furthest right.
LONGHAUL_HOST_DEVICE inline Interval keys_seen(const Band& band, Interval rows) {
  const std::int64_t first = larger(rows.begin, band.q_begin);
  const std::int64_t last = smaller(rows.end, band.q_end) - 1;
  if (last < first) return {0, 0};
  return {larger(band.k_begin, first + band.lo), smaller(band.k_end, last + band.hi + 1)};
}

/// The rows that may see at least one key of `keys`.
LONGHAUL_HOST_DEVICE inline Interval rows_seeing(const Band& band, Interval keys) {
  const std::int64_t first = larger(keys.begin, band.k_begin);
  const std::int64_t last = smaller(keys.end, band.k_end) - 1;
  if (last < first) return {0, 0};
  return {larger(band.q_begin, first - band.hi), smaller(band.q_end, last - band.lo + 1)};
}

/// Whether every row of `rows` sees every key of `keys`: then the tile needs no mask.
LONGHAUL_HOST_DEVICE inline bool covers(const Band& band, Interval rows, Interval keys) {
  return band.q_begin <= rows.begin && rows.end <= band.q_end &&
         larger(band.k_begin, rows.end - 1 + band.lo) <= keys.begin &&
         keys.end <= smaller(band.k_end, rows.begin + band.hi + 1);
}

}  // namespace longhaul::attention::detail
