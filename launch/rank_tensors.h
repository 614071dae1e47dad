#pragma once
// One rank's part of a replay's tensors: from global arrays to its device, and back to rank 0.

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "parallel/layout.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace longhaul::launch {

class RankTensors {
 public:
  RankTensors(const parallel::Layout& layout, int rank, const runtime::Stream& compute)
      : tokens_(layout.tokens_of(rank)), compute_(compute) {}

  /// This rank's rows of a global [tokens, heads, width] array, in `dtype`.
  runtime::Tensor upload(const std::vector<float>& global, std::int64_t heads, std::int64_t width,
                         runtime::DType dtype) const;
  /// Those values in another dtype.
  runtime::Tensor cast(const runtime::Tensor& values, runtime::DType dtype) const;
  /// All values, in this shape.
  runtime::Tensor upload_all(std::vector<float> values,
                             std::initializer_list<std::int64_t> sizes) const;
  runtime::Tensor make(std::initializer_list<std::int64_t> sizes,
                       runtime::DType dtype = runtime::DType::float32) const;
  /// The values on the host; blocks.
  std::vector<float> download(const runtime::Tensor& tensor) const;
  /// Rows.
  std::int64_t size() const { return std::ssize(tokens_); }

 private:
  const std::vector<std::int64_t> tokens_;
  const runtime::Stream compute_;
};

/// Every rank's values on rank 0, by rank; empty elsewhere. `counts`: how many each rank has.
/// Collective; blocks the host on `stream`, a CPU stream, as all below.
std::vector<std::vector<float>> gather_parts(runtime::Communicator& world,
                                             const std::vector<float>& mine,
                                             const std::vector<std::int64_t>& counts,
                                             const runtime::Stream& stream);
/// Rows of all ranks in global order on rank 0; empty elsewhere.
std::vector<float> gather_rows(runtime::Communicator& world, const parallel::Layout& layout,
                               const std::vector<float>& mine, std::int64_t row_elements,
                               const runtime::Stream& stream);
/// Sums of all ranks' values, on every rank.
std::vector<float> gather_sums(runtime::Communicator& world, const std::vector<float>& mine,
                               const runtime::Stream& stream);

}  // namespace longhaul::launch
