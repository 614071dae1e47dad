#include "attention/token_index.h"

#include <algorithm>

#include "runtime/error.h"

namespace longhaul::attention {

TokenIndex::TokenIndex(std::span<const Run> runs) {
  by_row_.reserve(runs.size());
  std::int64_t row = 0;
  for (const Run& run : runs) {
    LONGHAUL_CHECK(run.count >= 0 && run.first >= 0 && (run.count < 2 || run.stride >= 1),
                   "run of ", run.count, " tokens from ", run.first, " by ", run.stride);
    if (run.count > 0)
      by_row_.push_back({{run.first, run.count, run.count == 1 ? 1 : run.stride}, row});
    row += run.count;
  }
  const auto before = [](const PlacedRun& a, const PlacedRun& b) {
    if (a.run.stride != b.run.stride) return a.run.stride < b.run.stride;
    const std::int64_t stride = a.run.stride;
    if (stride > 1 && a.run.first % stride != b.run.first % stride)
      return a.run.first % stride < b.run.first % stride;
    return a.run.first < b.run.first;
  };
  if (!std::ranges::is_sorted(by_row_, before)) {
    sorted_ = by_row_;
    std::ranges::sort(sorted_, before);
  }

  end_so_far_.reserve(by_token().size());
  for (std::size_t i = 0; i < by_token().size(); ++i) {
    const PlacedRun& placed = by_token()[i];
    const std::int64_t stride = placed.run.stride, residue = placed.run.first % stride;
    const bool same_stride = !families_.empty() && families_.back().stride == stride;
    if (!same_stride) families_.push_back({stride, classes_.size(), classes_.size()});
    if (same_stride && classes_.back().residue == residue) {
      end_so_far_.push_back(std::max(end_so_far_.back(), placed.end()));
    } else {
      classes_.push_back({residue, i, i});
      families_.back().end = classes_.size();
      end_so_far_.push_back(placed.end());
    }
    classes_.back().end = i + 1;
    first_ = i == 0 ? placed.run.first : std::min(first_, placed.run.first);
    end_ = std::max(end_, placed.end());
  }
}

}  // namespace longhaul::attention
