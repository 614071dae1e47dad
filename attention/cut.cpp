// Where masks meet layouts: slices in token numbers become bands in row numbers of two views.

#include <algorithm>

#include "attention/mask.h"
#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::ExitCode;
using runtime::fail;

std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return -floor_div(-a, b); }

/// A run and the row number of its first token.
struct PlacedRun {
  Run run;
  std::int64_t row = 0;
  std::int64_t end() const { return run.first + (run.count - 1) * run.stride + 1; }
};

/// The runs of a view in token order, for binary search.
struct RunIndex {
  std::vector<PlacedRun> runs;           // sorted by first token
  std::vector<std::int64_t> end_so_far;  // rises

  explicit RunIndex(std::span<const Run> given) {
    runs.reserve(given.size());
    std::int64_t row = 0;
    for (const Run& run : given) {
      LONGHAUL_CHECK(run.count >= 0 && run.first >= 0 && (run.count < 2 || run.stride >= 1),
                     "run of ", run.count, " tokens from ", run.first, " by ", run.stride);
      if (run.count > 0)
        runs.push_back({{run.first, run.count, run.count == 1 ? 1 : run.stride}, row});
      row += run.count;
    }
    const auto by_token = [](const PlacedRun& a, const PlacedRun& b) {
      return a.run.first < b.run.first;
    };
    if (!std::is_sorted(runs.begin(), runs.end(), by_token))
      std::sort(runs.begin(), runs.end(), by_token);
    end_so_far.reserve(runs.size());
    for (const PlacedRun& placed : runs) {
      end_so_far.push_back(end_so_far.empty() ? placed.end()
                                              : std::max(end_so_far.back(), placed.end()));
    }
  }
  /// The runs that may hold a token of [begin, end).
  std::span<const PlacedRun> near(std::int64_t begin, std::int64_t end) const {
    const auto first =
        std::upper_bound(end_so_far.begin(), end_so_far.end(), begin) - end_so_far.begin();
    const auto last =
        std::lower_bound(runs.begin(), runs.end(), end,
                         [](const PlacedRun& a, std::int64_t e) { return a.run.first < e; }) -
        runs.begin();
    if (first >= last) return {};
    return {runs.data() + first, static_cast<std::size_t>(last - first)};
  }
};

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

/// Calls visit(slice, q_run, k_run) for all that may share a visible pair, until it returns true.
template <class Visit>
bool visit_cuts(const Mask& mask, const RunIndex& q_index, const RunIndex& k_index,
                const Visit& visit) {
  if (k_index.runs.empty()) return false;
  const std::int64_t k_first = k_index.runs.front().run.first, k_last = k_index.end_so_far.back();
  for (const PlacedRun& q : q_index.runs) {
    for (const Slice& slice : mask.slices_near(q.run.first, q.end(), k_first, k_last)) {
      const std::int64_t q_begin = std::max(slice.q_begin, q.run.first),
                         q_end = std::min(slice.q_end, q.end());
      if (q_begin >= q_end) continue;
      // Both edges rise with the row, so the first and the last row bound the keys.
      for (const PlacedRun& k : k_index.near(slice.key_begin(q_begin), slice.key_end(q_end - 1))) {
        if (visit(slice, q, k)) return true;
      }
    }
  }
  return false;
}

/// Joins bands whose union is one band: the smallest band around both has just their pairs.
std::vector<Slice> joined(std::vector<Slice> bands) {
  std::sort(bands.begin(), bands.end(), [](const Slice& a, const Slice& b) {
    return a.q_begin != b.q_begin ? a.q_begin < b.q_begin : a.k_begin < b.k_begin;
  });
  std::vector<Slice> out;
  for (Slice band : bands) {
    while (!out.empty()) {
      const Slice& a = out.back();
      const Slice hull{std::min(a.q_begin, band.q_begin), std::max(a.q_end, band.q_end),
                       std::min(a.k_begin, band.k_begin), std::max(a.k_end, band.k_end),
                       std::min(a.lo, band.lo),           std::max(a.hi, band.hi)};
      if (area(hull) != area(a) + area(band)) break;
      band = hull;
      out.pop_back();
    }
    out.push_back(band);
  }
  return out;
}

/// A visible pair of the first few query runs, if the runs rise; a miss says nothing. Most views
/// that share a pair show one at once, and an index of thousands of runs costs more than that.
bool glimpse(const Mask& mask, std::span<const Run> q_runs, std::span<const Run> k_runs) {
  constexpr std::size_t kRuns = 4;
  const auto usable = [](const Run& run) {  // the index says what is wrong with others
    return run.count == 1 || (run.count > 1 && run.stride >= 1);
  };
  const auto place = [](const Run& run) {
    return PlacedRun{{run.first, run.count, run.count == 1 ? 1 : run.stride}, 0};
  };
  for (const Run& q : q_runs.first(std::min(kRuns, q_runs.size()))) {
    if (!usable(q)) continue;
    const PlacedRun placed = place(q);
    for (const Slice& slice : mask.slices_near(q.first, placed.end(), 0, mask.tokens())) {
      const std::int64_t q_begin = std::max(slice.q_begin, q.first),
                         q_end = std::min(slice.q_end, placed.end());
      if (q_begin >= q_end) continue;
      // The last run that begins inside the keys of these rows, if any.
      const auto after = std::partition_point(
          k_runs.begin(), k_runs.end(),
          [end = slice.key_end(q_end - 1)](const Run& k) { return k.first < end; });
      if (after == k_runs.begin() || !usable(*std::prev(after))) continue;
      Slice band;
      const Strides strides = cut_runs(slice, placed, place(*std::prev(after)), band);
      if (strides == Strides::clash || band.q_begin < band.q_end) return true;
    }
  }
  return false;
}

}  // namespace

std::vector<Slice> cut(const Mask& mask, std::span<const Run> q_runs, std::span<const Run> k_runs) {
  std::vector<Slice> bands;
  visit_cuts(mask, RunIndex(q_runs), RunIndex(k_runs),
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
             });
  return joined(std::move(bands));
}

bool any_visible(const Mask& mask, std::span<const Run> q_runs, std::span<const Run> k_runs) {
  if (glimpse(mask, q_runs, k_runs)) return true;
  return visit_cuts(mask, RunIndex(q_runs), RunIndex(k_runs),
                    [](const Slice& slice, const PlacedRun& q, const PlacedRun& k) {
                      Slice band;
                      return cut_runs(slice, q, k, band) == Strides::clash ||
                             band.q_begin < band.q_end;
                    });
}

}  // namespace longhaul::attention
