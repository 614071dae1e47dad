#include "attention/mask.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <set>
#include <string>

#include "runtime/error.h"

namespace longhaul::attention {
namespace {

using runtime::ExitCode;
using runtime::fail;

bool before(const Slice& a, const Slice& b) {
  return a.q_begin != b.q_begin ? a.q_begin < b.q_begin : a.k_begin < b.k_begin;
}

std::string describe(const Slice& slice) {
  std::string text = runtime::concat("queries [", slice.q_begin, ", ", slice.q_end, "), keys [",
                                     slice.k_begin, ", ", slice.k_end, ")");
  if (slice.lo > -kUnbounded) text += runtime::concat(", key - query >= ", slice.lo);
  if (slice.hi < kUnbounded) text += runtime::concat(", key - query <= ", slice.hi);
  return text;
}

Slice shifted(Slice slice, std::int64_t offset) {
  slice.q_begin += offset;
  slice.q_end += offset;
  slice.k_begin += offset;
  slice.k_end += offset;
  return slice;
}

/// 0 + 1 + ... + n for n >= 0, else 0.
std::int64_t triangle(std::int64_t n) {
  return n <= 0 ? 0 : n % 2 == 0 ? n / 2 * (n + 1) : (n + 1) / 2 * n;
}

/// Pairs of a rectangle with key - query <= hi.
std::int64_t area_below(const Slice& s, std::int64_t hi) {
  const std::int64_t queries = s.q_end - s.q_begin, keys = s.k_end - s.k_begin;
  const std::int64_t shift = s.q_begin - s.k_begin;
  if (hi + shift >= keys - 1) return queries * keys;
  if (hi + shift < 1 - queries) return 0;
  // Row i of the rectangle sees clamp(i + edge, 0, keys) keys.
  const std::int64_t edge = hi + shift + 1;
  return triangle(queries - 1 + edge) - triangle(edge - 1) - triangle(queries - 1 + edge - keys) +
         triangle(edge - 1 - keys);
}

/// The first number in [from, end) for which `test` is true, or `end`, where it is true from some
/// number on. Steps that double, then a binary search: quick where the answer is near `from`.
template <class Test>
std::int64_t first_true(std::int64_t from, std::int64_t end, const Test& test) {
  std::int64_t step = 1;
  while (from < end && !test(std::min(from + step, end) - 1)) {
    from += step;
    step *= 2;
  }
  std::int64_t last = std::min(from + step, end);  // true at last - 1, or last is the end
  while (from < last) {
    const std::int64_t middle = from + (last - from) / 2;
    if (test(middle)) {
      last = middle;
    } else {
      from = middle + 1;
    }
  }
  return std::min(from, end);
}

struct Entry {
  Slice slice;        // tightened
  std::size_t index;  // in the caller's list
};

/// Sweeps the rows in order and keeps the slices of the current row sorted by their keys. Edges
/// move by 0 or 1 key a row, so two slices cannot pass each other without sharing a pair, and it is
/// enough to compare slices when they become neighbours. O(n log n).
void refuse_overlaps(const std::vector<Entry>& entries, const std::vector<Slice>& given) {
  const auto check = [&](const Entry& a, const Entry& b) {
    if (area(intersect(a.slice, b.slice)) == 0) return;
    const auto [first, second] = std::minmax(a.index, b.index);
    fail(ExitCode::data, "mask slices ", first, " (", describe(given[first]), ") and ", second,
         " (", describe(given[second]), ") overlap; slices must not share a (query, key) pair");
  };
  std::int64_t row = 0;
  const auto by_key = [&](const Entry* a, const Entry* b) {
    return a->slice.key_begin(row) < b->slice.key_begin(row);
  };
  using Active = std::multiset<const Entry*, decltype(by_key)>;
  Active active(by_key);

  std::vector<std::size_t> ends(entries.size());
  for (std::size_t e = 0; e < ends.size(); ++e) ends[e] = e;
  std::sort(ends.begin(), ends.end(), [&](std::size_t a, std::size_t b) {
    return entries[a].slice.q_end < entries[b].slice.q_end;
  });
  std::vector<Active::iterator> place(entries.size());
  std::size_t ended = 0;
  for (std::size_t e = 0; e < entries.size(); ++e) {
    row = entries[e].slice.q_begin;
    for (; ended < ends.size() && entries[ends[ended]].slice.q_end <= row; ++ended) {
      const auto next = active.erase(place[ends[ended]]);
      if (next != active.begin() && next != active.end()) check(**std::prev(next), **next);
    }
    const auto here = place[e] = active.insert(&entries[e]);
    if (here != active.begin()) check(**std::prev(here), **here);
    if (std::next(here) != active.end()) check(**here, **std::next(here));
  }
  while (ended < ends.size()) {
    const auto next = active.erase(place[ends[ended++]]);
    if (next != active.begin() && next != active.end()) check(**std::prev(next), **next);
  }
}

}  // namespace

std::int64_t Slice::key_begin(std::int64_t i) const { return std::max(k_begin, i + lo); }
std::int64_t Slice::key_end(std::int64_t i) const { return std::min(k_end, i + hi + 1); }

std::int64_t area(const Slice& slice) {
  if (slice.q_begin >= slice.q_end || slice.k_begin >= slice.k_end || slice.lo > slice.hi) return 0;
  return area_below(slice, slice.hi) - area_below(slice, slice.lo - 1);
}

std::int64_t area(std::span<const Slice> slices) {
  std::int64_t sum = 0;
  for (const Slice& slice : slices) sum += area(slice);
  return sum;
}

// Difference constraints between three unknowns (query, key, zero): bounds of one step through the
// third are the whole closure.
Slice tightened(const Slice& s) {
  const std::int64_t q_last = s.q_end - 1, k_last = s.k_end - 1;
  if (s.q_begin > q_last || s.k_begin > k_last || s.lo > s.hi || q_last + s.hi < s.k_begin ||
      s.q_begin + s.lo > k_last) {
    return Slice{0, 0, 0, 0, 0, 0};
  }
  Slice t;
  t.q_begin = std::max(s.q_begin, s.k_begin - s.hi);
  t.q_end = std::min(q_last, k_last - s.lo) + 1;
  t.k_begin = std::max(s.k_begin, s.q_begin + s.lo);
  t.k_end = std::min(k_last, q_last + s.hi) + 1;
  t.lo = std::max(s.lo, s.k_begin - q_last);
  t.hi = std::min(s.hi, k_last - s.q_begin);
  return t;
}

Slice intersect(const Slice& a, const Slice& b) {
  return tightened({std::max(a.q_begin, b.q_begin), std::min(a.q_end, b.q_end),
                    std::max(a.k_begin, b.k_begin), std::min(a.k_end, b.k_end),
                    std::max(a.lo, b.lo), std::min(a.hi, b.hi)});
}

Slice slice_from_type(std::int64_t q_begin, std::int64_t q_end, std::int64_t k_begin,
                      std::int64_t k_end, int type) {
  if (type < 0 || type > 3) {
    fail(ExitCode::data, "slice type ", type,
         " is unknown; expected 0 (full), 1 (causal), 2 (inverse causal) or 3 (both)");
  }
  Slice slice{q_begin, q_end, k_begin, k_end};
  if ((type & 1) != 0) slice.hi = k_end - q_end;
  if ((type & 2) != 0) slice.lo = k_begin - q_begin;
  return slice;
}

Mask::Mask(std::int64_t tokens, std::vector<Slice> slices)
    : tokens_(tokens),
      slices_(std::move(slices)),
      q_end_so_far_(slices_.size()),
      k_end_so_far_(slices_.size()),
      k_begin_from_here_(slices_.size()) {
  std::int64_t q_end = 0, k_end = 0, k_begin = tokens;
  for (std::size_t i = 0; i < slices_.size(); ++i) {
    q_end_so_far_[i] = q_end = std::max(q_end, slices_[i].q_end);
    k_end_so_far_[i] = k_end = std::max(k_end, slices_[i].k_end);
  }
  for (std::size_t i = slices_.size(); i-- > 0;) {
    k_begin_from_here_[i] = k_begin = std::min(k_begin, slices_[i].k_begin);
  }
}

Mask Mask::full(std::int64_t tokens) { return from_slices(tokens, {{0, tokens, 0, tokens}}); }

Mask Mask::causal(std::int64_t tokens) {
  return from_slices(tokens, {{0, tokens, 0, tokens, -kUnbounded, 0}});
}

Mask Mask::documents(std::span<const std::int64_t> offsets) {
  if (offsets.empty())
    fail(ExitCode::data, "document offsets are empty; expected at least the offset 0");
  if (offsets[0] != 0) fail(ExitCode::data, "document offset 0 is ", offsets[0], "; expected 0");
  std::vector<Slice> slices;
  slices.reserve(offsets.size());
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    const std::int64_t begin = offsets[i - 1], end = offsets[i];
    if (end < begin) {
      fail(ExitCode::data, "document offset ", i, " is ", end, ", less than offset ", i - 1,
           ", which is ", begin, "; offsets must not fall");
    }
    if (end > begin) slices.push_back({begin, end, begin, end, begin - end + 1, 0});
  }
  return {offsets.back(), std::move(slices)};
}

Mask Mask::from_slices(std::int64_t tokens, std::vector<Slice> slices) {
  if (tokens < 0) fail(ExitCode::data, "a mask of ", tokens, " tokens; expected 0 or more");
  std::vector<Entry> entries;
  entries.reserve(slices.size());
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const Slice& s = slices[i];
    if (s.q_begin < 0 || s.q_end < s.q_begin || s.q_end > tokens || s.k_begin < 0 ||
        s.k_end < s.k_begin || s.k_end > tokens) {
      fail(ExitCode::data, "mask slice ", i, " (", describe(s), ") leaves the ", tokens, " tokens");
    }
    if (s.lo < -kUnbounded || s.hi > kUnbounded) {
      fail(ExitCode::data, "mask slice ", i, " (", describe(s), ") has a band beyond +-",
           kUnbounded);
    }
    const Slice tight = tightened(s);
    if (tight.q_begin < tight.q_end) entries.push_back({tight, i});
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return before(a.slice, b.slice); });
  refuse_overlaps(entries, slices);
  slices.clear();
  for (const Entry& entry : entries) slices.push_back(entry.slice);
  return {tokens, std::move(slices)};
}

Mask Mask::repeated(std::int64_t copies) const {
  if (copies < 0) fail(ExitCode::data, "a mask cannot be repeated ", copies, " times");
  std::vector<Slice> slices;
  slices.reserve(slices_.size() * static_cast<std::size_t>(copies));
  for (std::int64_t copy = 0; copy < copies; ++copy) {
    for (const Slice& slice : slices_) slices.push_back(shifted(slice, copy * tokens_));
  }
  return {copies * tokens_, std::move(slices)};
}

Mask Mask::concatenated(std::span<const Mask> masks) {
  std::int64_t tokens = 0;
  std::vector<Slice> slices;
  for (const Mask& mask : masks) {
    for (const Slice& slice : mask.slices_) slices.push_back(shifted(slice, tokens));
    tokens += mask.tokens_;
  }
  return {tokens, std::move(slices)};
}

Mask Mask::within(std::int64_t lo, std::int64_t hi) const {
  std::vector<Slice> slices;
  slices.reserve(slices_.size());
  for (Slice slice : slices_) {
    slice.lo = std::max(slice.lo, lo);
    slice.hi = std::min(slice.hi, hi);
    slice = tightened(slice);
    if (slice.q_begin < slice.q_end) slices.push_back(slice);
  }
  std::ranges::sort(slices, before);
  return {tokens_, std::move(slices)};
}

std::int64_t Mask::area() const { return attention::area(slices_); }

bool Mask::is_causal() const {  // the slices are tightened, so hi is attained
  return std::ranges::all_of(slices_, [](const Slice& slice) { return slice.hi <= 0; });
}

std::uint64_t Mask::digest() const {
  static_assert(sizeof(Slice) == 6 * sizeof(std::int64_t) &&
                std::endian::native == std::endian::little);
  return XXH64(slices_.data(), slices_.size() * sizeof(Slice), static_cast<XXH64_hash_t>(tokens_));
}

std::span<const Slice> Mask::slices_near(std::int64_t q_begin, std::int64_t q_end,
                                         std::int64_t k_begin, std::int64_t k_end,
                                         std::int64_t from) const {
  const auto count = static_cast<std::int64_t>(slices_.size());
  const auto at = [](const auto& list, std::int64_t i) {
    return list[static_cast<std::size_t>(i)];
  };
  const std::int64_t by_key =
      first_true(from, count, [&](std::int64_t i) { return at(k_end_so_far_, i) > k_begin; });
  const std::int64_t first = first_ending_after(q_begin, by_key);
  const std::int64_t last = first_true(first, count, [&](std::int64_t i) {
    return at(slices_, i).q_begin >= q_end || at(k_begin_from_here_, i) >= k_end;
  });
  return {slices_.data() + first, static_cast<std::size_t>(last - first)};
}

std::int64_t Mask::first_ending_after(std::int64_t q, std::int64_t from) const {
  return first_true(from, static_cast<std::int64_t>(slices_.size()),
                    [&](std::int64_t i) { return q_end_so_far_[static_cast<std::size_t>(i)] > q; });
}

}  // namespace longhaul::attention
