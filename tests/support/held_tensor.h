#pragma once
// A tensor of a kernel's test, plain or strided, with NaN wherever nothing was set.

#include <cstring>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::test {

/// A CPU tensor [rows, heads, dim] whose memory is plain or, strided, [heads, rows, dim + 3]. Gaps
/// hold NaN.
class Held {
 public:
  Held(std::int64_t rows, std::int64_t heads, std::int64_t dim, runtime::DType dtype, bool strided,
       const runtime::Stream& stream)
      : rows_(rows), heads_(heads), dim_(dim), memory_({rows * heads * (dim + 3)}, dtype, stream) {
    const std::int64_t gap = strided ? 3 : 0;
    const std::int64_t row = strided ? dim + gap : heads * dim,
                       head = strided ? rows * (dim + gap) : dim;
    view_.assign(memory_.view().data(), dtype, stream.device(), 3, {rows, heads, dim},
                 {row, head, 1});
    // All bits set is a NaN in float32 and in bfloat16.
    if (memory_.bytes() > 0)
      std::memset(memory_.view().data(), 0xff, static_cast<std::size_t>(memory_.bytes()));
  }
  const runtime::TensorView& view() const { return view_; }
  /// [rows, heads] of dim 1.
  runtime::TensorView flat() const {
    runtime::TensorView flat;
    flat.assign(view_.data(), view_.dtype(), view_.device(), 2, {rows_, heads_},
                {view_.stride(0), view_.stride(1)});
    return flat;
  }
  void set(const std::vector<float>& values) {
    visit([&](std::int64_t at, std::size_t i) {
      if (view_.dtype() == runtime::DType::bfloat16) {
        view_.as<runtime::BFloat16>()[at] = runtime::BFloat16(values[i]);
      } else {
        view_.as<float>()[at] = values[i];
      }
    });
  }
  std::vector<float> get() const {
    std::vector<float> values(static_cast<std::size_t>(rows_ * heads_ * dim_));
    visit([&](std::int64_t at, std::size_t i) { values[i] = view_.as<float>()[at]; });
    return values;
  }
  std::vector<std::byte> bytes() const {
    return {memory_.view().data(), memory_.view().data() + memory_.bytes()};
  }

 private:
  template <class Visit>
  void visit(const Visit& call) const {
    std::size_t i = 0;
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t h = 0; h < heads_; ++h) {
        for (std::int64_t d = 0; d < dim_; ++d)
          call(r * view_.stride(0) + h * view_.stride(1) + d, i++);
      }
    }
  }
  std::int64_t rows_, heads_, dim_;
  runtime::Tensor memory_;
  runtime::TensorView view_;
};

}  // namespace longhaul::test
