#include <algorithm>
#include <cmath>

#include "runtime/io/unigram_impl.h"

namespace longhaul::runtime {
namespace {
// Up to this, a histogram is an array; above, the ids are sparse.
constexpr std::int64_t kDenseVocabulary = std::int64_t{1} << 24;
}  // namespace

UnigramCounts::UnigramCounts(std::int64_t vocabulary_size) {
  if (vocabulary_size <= kDenseVocabulary) dense_.resize(static_cast<std::size_t>(vocabulary_size));
}

void UnigramCounts::add(std::span<const std::int32_t> tokens) {
  tokens_ += std::ssize(tokens);
  if (dense_.empty()) {
    for (const std::int32_t id : tokens) ++sparse_[id];
  } else {
    for (const std::int32_t id : tokens) ++dense_[static_cast<std::size_t>(id)];
  }
}

double UnigramCounts::entropy() const {
  std::vector<std::int64_t> counts;
  for (const std::int64_t count : dense_) {
    if (count > 0) counts.push_back(count);
  }
  for (const auto& [id, count] : sparse_) counts.push_back(count);
  std::ranges::sort(counts);  // one order of summation, whatever the map's
  double sum = 0;
  for (const std::int64_t count : counts) {
    const double share = static_cast<double>(count) / static_cast<double>(tokens_);
    sum -= share * std::log(share);
  }
  return sum;
}

}  // namespace longhaul::runtime
