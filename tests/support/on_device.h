#pragma once
// A tensor of a kernel's test on any device, plain or strided, with NaN wherever nothing was set.

#include <limits>
#include <vector>

#include "runtime/ops/host_copy.h"
#include "tests/support/host_tensors.h"

namespace longhaul::test {

/// [rows, heads, dim], plain or, strided, as [heads, rows, dim + gap].
class OnDevice {
 public:
  OnDevice(std::int64_t rows, std::int64_t heads, std::int64_t dim, runtime::DType dtype,
           bool strided, const runtime::Stream& stream, std::int64_t gap = 3)
      : memory_({rows * heads * (dim + gap)}, dtype, stream) {
    const std::int64_t row = strided ? dim + gap : heads * dim,
                       head = strided ? rows * (dim + gap) : dim;
    view_.assign(memory_.view().data(), dtype, stream.device(), 3, {rows, heads, dim},
                 {row, head, 1});
    fill(memory_, std::numeric_limits<double>::quiet_NaN(), stream);
  }
  const runtime::TensorView& view() const { return view_; }
  /// [rows, heads] of dim 1.
  runtime::TensorView flat() const {
    runtime::TensorView flat;
    flat.assign(view_.data(), view_.dtype(), view_.device(), 2, {view_.size(0), view_.size(1)},
                {view_.stride(0), view_.stride(1)});
    return flat;
  }
  void set(const std::vector<float>& values, const runtime::Stream& stream) const {
    const runtime::Tensor wide(view_.sizes(), runtime::DType::float32, stream);
    runtime::ops::upload(values, wide, stream);
    runtime::copy(wide, view_, stream);  // exact: the values are rounded already
  }
  std::vector<float> get(const runtime::Stream& stream) const {
    const runtime::Tensor plain(view_.sizes(), runtime::DType::float32, stream);
    runtime::copy(view_, plain, stream);
    const auto values = runtime::ops::download<float>(plain, stream);
    stream.synchronize(runtime::deadline_in(kSeconds));
    return *values;
  }
  /// Gaps included.
  std::vector<std::byte> bytes(const runtime::Stream& stream) const {
    return read_bytes(memory_, stream);
  }

 private:
  static constexpr double kSeconds = 600;
  runtime::Tensor memory_;
  runtime::TensorView view_;
};

}  // namespace longhaul::test
