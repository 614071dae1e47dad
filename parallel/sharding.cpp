#include "parallel/sharding.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/error.h"
#include "runtime/ops/gradient_norm.h"

namespace longhaul::parallel {

using runtime::ops::kNormChunk;
using runtime::ops::norm_chunks;

namespace {

/// Adds the boxes of a range of the sub-tensor of dims `dim`, ...; `at` places it in the tensor.
void add_boxes(const std::vector<std::int64_t>& sizes, std::size_t dim,
               const std::vector<std::int64_t>& at, ElementRange range, std::vector<Box>& boxes) {
  if (range.begin == range.end) return;
  const std::int64_t row = std::accumulate(sizes.begin() + static_cast<std::ptrdiff_t>(dim) + 1,
                                           sizes.end(), std::int64_t{1}, std::multiplies<>());
  const auto part_of_row = [&](std::int64_t index, std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> inside = at;
    inside[dim] = index;
    add_boxes(sizes, dim + 1, inside, {begin, end}, boxes);
  };
  std::int64_t first = range.begin / row;
  const std::int64_t last = range.end / row;  // the first row that is not whole
  if (const std::int64_t skipped = range.begin % row; skipped > 0) {
    part_of_row(first, skipped, std::min(row, range.end - first * row));
    ++first;
  }
  if (first < last) {
    Box whole{at, std::vector<std::int64_t>(sizes.size(), 1)};
    whole.start[dim] = first;
    std::copy(sizes.begin() + static_cast<std::ptrdiff_t>(dim), sizes.end(),
              whole.sizes.begin() + static_cast<std::ptrdiff_t>(dim));
    whole.sizes[dim] = last - first;
    boxes.push_back(std::move(whole));
  }
  if (first <= last) part_of_row(last, 0, range.end % row);
}

}  // namespace

ElementRange Bucket::owned(int rank) const {
  const auto mine = counts.begin() + rank;
  const std::int64_t begin = std::accumulate(counts.begin(), mine, range.begin);
  return {begin, begin + *mine};
}

Sharding::Sharding(const ParameterTable& table, int ranks) {
  LONGHAUL_CHECK(ranks >= 1, "parameters are dealt to ", ranks, " ranks; expected at least 1");
  std::int64_t chunk = 0;  // the next to be dealt
  std::int64_t turn = 0;   // the rank that gets the next chunk more than its fair share
  for (int group = 0; group < table.groups(); ++group) {
    const std::int64_t begin = chunk;
    chunk = norm_chunks(table.group_range(group).end);
    if (begin == chunk) continue;
    Bucket bucket{{begin * kNormChunk, std::min(chunk * kNormChunk, table.elements())}, {}};
    const std::int64_t fair = (chunk - begin) / ranks, more = (chunk - begin) % ranks;
    std::int64_t dealt = begin;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      const std::int64_t from = dealt * kNormChunk;
      dealt += fair + ((rank - turn + ranks) % ranks < more ? 1 : 0);
      bucket.counts.push_back(std::min(dealt * kNormChunk, table.elements()) -
                              std::min(from, table.elements()));
    }
    turn = (turn + more) % ranks;
    buckets_.push_back(std::move(bucket));
  }
}

std::int64_t Sharding::largest_share(std::int64_t elements, std::int64_t ranks) {
  const std::int64_t chunks = norm_chunks(elements);
  return std::min(elements, (chunks + ranks - 1) / ranks * kNormChunk);
}

std::vector<ElementRange> Sharding::owned(int rank) const {
  std::vector<ElementRange> ranges;
  for (const Bucket& bucket : buckets_) {
    const ElementRange part = bucket.owned(rank);
    if (part.elements() == 0) continue;
    if (!ranges.empty() && ranges.back().end == part.begin) {
      ranges.back().end = part.end;
    } else {
      ranges.push_back(part);
    }
  }
  return ranges;
}

std::vector<Box> boxes_of(const std::vector<std::int64_t>& sizes, ElementRange range) {
  std::vector<Box> boxes;
  add_boxes(sizes, 0, std::vector<std::int64_t>(sizes.size(), 0), range, boxes);
  return boxes;
}

std::vector<StateBox> state_boxes(const ParameterTable& table, const FlatState& state,
                                  const std::vector<ElementRange>& wanted) {
  std::vector<StateBox> result;
  std::int64_t held = 0;  // elements of the ranges before this one
  for (const ElementRange& range : state.ranges) {
    for (const ElementRange& want : wanted) {
      const ElementRange both = common(range, want);
      if (both.elements() == 0) continue;
      for (const Parameter& parameter : table.parameters()) {
        const ElementRange part = common(both, parameter.range);
        if (part.elements() == 0) continue;
        std::int64_t at = held + part.begin - range.begin;
        const std::int64_t origin = parameter.range.begin;
        for (Box& box : boxes_of(parameter.sizes, {part.begin - origin, part.end - origin})) {
          const std::int64_t elements = std::accumulate(box.sizes.begin(), box.sizes.end(),
                                                        std::int64_t{1}, std::multiplies<>());
          const runtime::TensorView flat = state.elements.slice(0, at, at + elements);
          result.push_back({state.prefix + parameter.name,
                            parameter.sizes,
                            std::move(box.start),
                            {flat.data(), flat.dtype(), flat.device(), box.sizes}});
          at += elements;
        }
      }
    }
    held += range.elements();
  }
  return result;
}

}  // namespace longhaul::parallel
