#pragma once
// Whether all ranks have dealt the tasks of attention alike.

#include <cstdint>
#include <span>
#include <vector>

#include "launch/batches.h"
#include "runtime/comm/communicator.h"

namespace longhaul::launch {

/// Of the plans that the tasks of some batches' calls were dealt by, as two numbers, which ranks
/// tell each other behind others of theirs.
class TaskDigest {
 public:
  explicit TaskDigest(std::span<const LocalBatch> batches);

  static constexpr std::size_t kNumbers = 2;
  std::vector<double> numbers() const;
  /// `ranks`: numbers of each rank, which end with those of its digest. Throws Error(disagree) on
  /// every rank, with a table of which ranks hold what, unless all are the same. Collective over
  /// `comm` where they are not; `stream` is a CPU stream.
  void require_same(const std::vector<std::vector<double>>& ranks, std::int64_t step,
                    runtime::Communicator& comm, const runtime::Stream& stream) const;

 private:
  std::uint64_t digest_ = 0;
};

}  // namespace longhaul::launch
