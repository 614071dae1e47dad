#pragma once
// Tensors as files read and write them: bytes in host memory, some rows at a time. What lies on a
// device goes through host memory of its stream.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::runtime {

/// How much of a tensor of a device is in host memory at a time; at least one row of it.
constexpr std::int64_t kStagedBytes = std::int64_t{64} << 20;

/// Writes rows [begin, end) of a tensor to `out`, which they fill, in row-major order.
using RowReader =
    std::function<void(std::int64_t begin, std::int64_t end, std::span<std::byte> out)>;

/// The rows of a tensor of at least one dim, to be written into a file or compared with one.
class HostRows {
 public:
  /// `stream`: of the device that the tensor lies on, where it must be contiguous and ready in the
  /// stream's order; none: host memory, any strides, ready. At most `staged_bytes` of a device's
  /// are in host memory at a time, or one row.
  HostRows(ConstTensorView tensor, std::optional<Stream> stream, std::int64_t staged_bytes);
  /// Of a tensor that lies nowhere: `shape` has its sizes and dtype, and no data. At most
  /// `staged_bytes` are in memory at a time, or one row.
  HostRows(ConstTensorView shape, RowReader reader, std::int64_t staged_bytes);

  std::int64_t count() const { return tensor_.size(0); }
  /// As many rows as read() gives at a time: all of what lies in host memory.
  std::int64_t most() const { return most_; }
  std::int64_t row_bytes() const { return row_bytes_; }
  /// The bytes of rows [begin, end) in row-major order, valid until the next call. Blocks.
  std::span<const std::byte> read(std::int64_t begin, std::int64_t end);

 private:
  const ConstTensorView tensor_;
  const std::optional<Stream> stream_;
  const RowReader reader_;
  const std::int64_t row_bytes_, most_;
  Buffer staging_;                 // of a device's rows
  std::vector<std::byte> packed_;  // of strided rows, or of those that a reader gives
};

/// As many rows of `row_bytes` as lie in `bytes`, at least one.
std::int64_t rows_within(std::int64_t bytes, std::int64_t row_bytes);

}  // namespace longhaul::runtime
