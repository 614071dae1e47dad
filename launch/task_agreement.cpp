#include "launch/task_agreement.h"

#include <algorithm>

#include "runtime/comm/grid.h"
#include "runtime/error.h"
#include "runtime/io/hash.h"

namespace longhaul::launch {

TaskDigest::TaskDigest(std::span<const LocalBatch> batches) {
  std::vector<std::uint64_t> digests;
  for (const LocalBatch& batch : batches) {
    for (const auto& calls : batch.attention) digests.push_back(calls->task_digest());
  }
  digest_ = runtime::xxh3_64(std::as_bytes(std::span(digests)));
}

std::vector<double> TaskDigest::numbers() const {  // a double holds 32 bits
  return {static_cast<double>(digest_ >> 32), static_cast<double>(digest_ & 0xffffffffU)};
}

void TaskDigest::require_same(const std::vector<std::vector<double>>& ranks, std::int64_t step,
                              runtime::Communicator& comm, const runtime::Stream& stream) const {
  const bool same = std::ranges::all_of(ranks, [&](const std::vector<double>& rank) {
    return std::ranges::equal(std::span(rank).last(kNumbers),
                              std::span(ranks.front()).last(kNumbers));
  });
  if (same) return;
  runtime::check_agreement(
      comm,
      {{runtime::concat("plan of the attention tasks of step ", step), runtime::hex64(digest_)}},
      stream);
}

}  // namespace longhaul::launch
