// Where masks meet layouts: slices in token numbers become bands in row numbers of two views.

#include <algorithm>

#include "attention/mask.h"
#include "attention/token_index.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::ExitCode;
using runtime::fail;

std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return -floor_div(-a, b); }

/// Part of a run: `count` tokens from its token number `begin`.
struct Part {
  std::int64_t begin = 0, end = 0;
  std::int64_t count() const { return end - begin; }
};
Part part_of(const Run& run, std::int64_t begin, std::int64_t end) {
  if (run.stride == 1)
    return {std::max<std::int64_t>(0, begin - run.first), std::min(run.count, end - run.first)};
  return {std::max<std::int64_t>(0, ceil_div(begin - run.first, run.stride)),
          std::min(run.count, ceil_div(end - run.first, run.stride))};
}

/// Whether a tightened slice has an edge that follows the row.
bool cuts_corner(const Slice& s) {
  return s.lo > s.k_begin - (s.q_end - 1) || s.hi < s.k_end - 1 - s.q_begin;
}

/// Unequal strides: row by row, whether any pair is visible.
bool any_pair(const Slice& slice, const Run& q, const Part& q_part, const Run& k) {
  for (std::int64_t j = q_part.begin; j < q_part.end; ++j) {
    const std::int64_t token = q.first + j * q.stride;
    if (part_of(k, slice.key_begin(token), slice.key_end(token)).count() > 0) return true;
  }
  return false;
}

enum class Strides { fit, clash };

/// The pairs of `slice` between two runs, in row numbers; all zero when none. `clash`: pairs may be
/// visible, but an edge runs between tokens of unequal strides.
Strides cut_runs(const Slice& given, const PlacedRun& q, const PlacedRun& k, Slice& band) {
  band = {0, 0, 0, 0, 0, 0};
  // To the tokens that both runs span; edges that no longer cut are dropped by the tightening.
  const Slice slice = tightened(
      {std::max(given.q_begin, q.run.first), std::min(given.q_end, q.end()),
       std::max(given.k_begin, k.run.first), std::min(given.k_end, k.end()), given.lo, given.hi});
  const Part qp = part_of(q.run, slice.q_begin, slice.q_end),
             kp = part_of(k.run, slice.k_begin, slice.k_end);
  if (qp.count() <= 0 || kp.count() <= 0) return Strides::fit;
  Slice rows{q.row + qp.begin, q.row + qp.end, k.row + kp.begin, k.row + kp.end};
  const std::int64_t distance = k.run.first - q.run.first, row_distance = k.row - q.row;
  if (!cuts_corner(slice)) {
    band = tightened(rows);
  } else if (qp.count() == 1) {
    const std::int64_t token = q.run.first + qp.begin * q.run.stride;
    const Part seen = part_of(k.run, slice.key_begin(token), slice.key_end(token));
    band = tightened({rows.q_begin, rows.q_end, k.row + seen.begin, k.row + seen.end});
  } else if (kp.count() == 1) {
    const std::int64_t token = k.run.first + kp.begin * k.run.stride;
    const Part seen = part_of(q.run, std::max(slice.q_begin, token - slice.hi),
                              std::min(slice.q_end, token - slice.lo + 1));
    band = tightened({q.row + seen.begin, q.row + seen.end, rows.k_begin, rows.k_end});
  } else if (q.run.stride == k.run.stride) {
    rows.lo = ceil_div(slice.lo - distance, q.run.stride) + row_distance;
    rows.hi = floor_div(slice.hi - distance, q.run.stride) + row_distance;
    band = tightened(rows);
  } else {
    return any_pair(slice, q.run, qp, k.run) ? Strides::clash : Strides::fit;
  }
  return Strides::fit;
}

/// Calls visit(slice, q_run, k_run) for all that may share a visible pair, until it returns true;
/// and done() whenever it has for all keys of a slice and a query run. Query runs come in row
/// order.
template <class Visit, class Done>
bool visit_cuts(const Mask& mask, const TokenIndex& queries, const TokenIndex& keys,
                const Visit& visit, const Done& done) {
  if (keys.empty()) return false;
  const Slice* const slices = mask.slices().data();
  const Slice* first = slices;  // that may meet the run; rises with the runs
  std::int64_t previous = 0;
  for (const PlacedRun& q : queries.by_row()) {
    if (q.run.first < previous) first = slices;
    previous = q.run.first;
    const auto near =
        mask.slices_near(q.run.first, q.end(), keys.first(), keys.end(), first - slices);
    first = near.data();
    for (const Slice *slice = first, *end = first + near.size(); slice < end;) {
      const Part part = part_of(q.run, slice->q_begin, slice->q_end);
      if (part.count() > 0) {
        // Both edges rise with the row, so the first and the last row bound the keys.
        const std::int64_t q_first = q.run.first + part.begin * q.run.stride,
                           q_last = q.run.first + (part.end - 1) * q.run.stride;
        if (keys.visit_near(slice->key_begin(q_first), slice->key_end(q_last),
                            [&](const PlacedRun& k) { return visit(*slice, q, k); }))
          return true;
        done();
        ++slice;
      } else if (part.begin < q.run.count) {
        // No later slice holds a token of the run before this one.
        slice = slices + mask.first_ending_after(q.run.first + part.begin * q.run.stride,
                                                 slice + 1 - slices);
      } else {
        break;
      }
    }
  }
  return false;
}

bool before(const Slice& a, const Slice& b) {
  return a.q_begin != b.q_begin ? a.q_begin < b.q_begin : a.k_begin < b.k_begin;
}

/// Whether two bands touch or overlap in queries, in keys and in their diagonals, as the parts of
/// one band do.
bool adjacent(const Slice& a, const Slice& b) {
  return b.q_begin <= a.q_end && a.q_begin <= b.q_end && b.k_begin <= a.k_end &&
         a.k_begin <= b.k_end && b.lo <= a.hi + 1 && a.lo <= b.hi + 1;
}

/// Joins bands whose union is one band: the smallest band around both has just their pairs.
std::vector<Slice> joined(std::vector<Slice> bands) {
  if (!std::is_sorted(bands.begin(), bands.end(), before))
    std::sort(bands.begin(), bands.end(), before);
  std::size_t kept = 0;
  for (Slice band : bands) {
    while (kept > 0 && adjacent(bands[kept - 1], band)) {
      const Slice& a = bands[kept - 1];
      const Slice hull{std::min(a.q_begin, band.q_begin), std::max(a.q_end, band.q_end),
                       std::min(a.k_begin, band.k_begin), std::max(a.k_end, band.k_end),
                       std::min(a.lo, band.lo),           std::max(a.hi, band.hi)};
      if (area(hull) != area(a) + area(band)) break;
      band = hull;
      --kept;
    }
    bands[kept++] = band;
  }
  bands.resize(kept);
  return bands;
}

}  // namespace

std::vector<Slice> cut(const Mask& mask, const TokenIndex& queries, const TokenIndex& keys) {
  std::vector<Slice> bands;
  std::size_t sorted = 0;
  visit_cuts(
      mask, queries, keys,
      [&](const Slice& slice, const PlacedRun& q, const PlacedRun& k) {
        Slice band;
        if (cut_runs(slice, q, k, band) == Strides::clash) {
          fail(ExitCode::config,
               "a band cannot be cut by runs of different strides: queries from token ",
               q.run.first, " by ", q.run.stride, ", keys from token ", k.run.first, " by ",
               k.run.stride, "; use one layout for queries and keys");
        }
        if (band.q_begin < band.q_end) bands.push_back(band);
        return false;
      },
      [&] {  // few at a time: nearly always this leaves all of them sorted
        std::sort(bands.begin() + static_cast<std::ptrdiff_t>(sorted), bands.end(), before);
        sorted = bands.size();
      });
  return joined(std::move(bands));
}

bool any_visible(const Mask& mask, const TokenIndex& queries, const TokenIndex& keys) {
  return visit_cuts(
      mask, queries, keys,
      [](const Slice& slice, const PlacedRun& q, const PlacedRun& k) {
        Slice band;
        return cut_runs(slice, q, k, band) == Strides::clash || band.q_begin < band.q_end;
      },
      [] {});
}

std::vector<Slice> cut(const Mask& mask, std::span<const Run> q_runs, std::span<const Run> k_runs) {
  return cut(mask, TokenIndex(q_runs), TokenIndex(k_runs));
}
bool any_visible(const Mask& mask, std::span<const Run> q_runs, std::span<const Run> k_runs) {
  return any_visible(mask, TokenIndex(q_runs), TokenIndex(k_runs));
}

}  // namespace longhaul::attention
