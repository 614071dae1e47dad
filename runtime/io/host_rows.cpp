#include "runtime/io/host_rows.h"

#include <algorithm>
#include <utility>

#include "runtime/error.h"
#include "runtime/tensor_impl.h"

namespace longhaul::runtime {

namespace {
constexpr double kSeconds = 24 * 3600.0;  // what the stream waits for has deadlines of its own
}

std::int64_t rows_within(std::int64_t bytes, std::int64_t row_bytes) {
  return std::max<std::int64_t>(1, bytes / std::max<std::int64_t>(1, row_bytes));
}

HostRows::HostRows(ConstTensorView tensor, std::optional<Stream> stream, std::int64_t staged_bytes)
    : tensor_(tensor),
      stream_(std::move(stream)),
      row_bytes_(tensor.size(0) == 0 ? 0 : tensor.bytes() / tensor.size(0)),
      most_(stream_ ? rows_within(staged_bytes, row_bytes_) : tensor.size(0)) {
  LONGHAUL_CHECK(!stream_ || (tensor.contiguous() && tensor.device() == stream_->device()),
                 "rows on ", to_string(tensor.device()), tensor.contiguous() ? "" : ", strided",
                 ", with a stream of ", to_string(stream_ ? stream_->device() : Device{}),
                 "; expected contiguous rows of the stream's device");
}

HostRows::HostRows(ConstTensorView shape, RowReader reader, std::int64_t staged_bytes)
    : tensor_(shape),
      reader_(std::move(reader)),
      row_bytes_(shape.size(0) == 0 ? 0 : shape.bytes() / shape.size(0)),
      most_(rows_within(staged_bytes, row_bytes_)) {}

std::span<const std::byte> HostRows::read(std::int64_t begin, std::int64_t end) {
  LONGHAUL_CHECK(end - begin <= most_, "rows [", begin, ", ", end, ") where ", most_,
                 " are read at a time");
  if (reader_) {
    packed_.resize(static_cast<std::size_t>((end - begin) * row_bytes_));
    reader_(begin, end, packed_);
    return packed_;
  }
  const ConstTensorView rows = tensor_.slice(0, begin, end);
  const auto bytes = static_cast<std::size_t>(rows.bytes());
  if (stream_) {
    if (staging_.bytes() < rows.bytes()) {
      staging_ = Buffer();
      staging_ = stream_->allocate_host(std::min(most_, count()) * row_bytes_);
    }
    runtime::copy(rows, TensorView(staging_.data(), rows.dtype(), Device{}, rows.sizes()),
                  *stream_);
    stream_->synchronize(deadline_in(kSeconds));
    return {staging_.data(), bytes};
  }
  if (rows.contiguous()) return {rows.data(), bytes};
  packed_.resize(bytes);
  detail::copy_now(rows, TensorView(packed_.data(), rows.dtype(), rows.device(), rows.sizes()));
  return packed_;
}

}  // namespace longhaul::runtime
