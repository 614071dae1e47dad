#pragma once
// Tensors of a stream on any device from and to host vectors, and how results are compared.

#include <initializer_list>
#include <vector>

#include "runtime/tensor.h"

namespace longhaul::test {

using Values = std::vector<double>;

inline std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// A tensor that owns room before and behind its view, which may begin off 16 bytes.
struct Placed {
  runtime::Tensor memory;
  runtime::TensorView view;
  operator runtime::TensorView() const { return view; }
  operator runtime::ConstTensorView() const { return view; }
};

/// The values rounded to `dtype`, `offset` elements behind an aligned address.
Placed put(const Values& values, std::initializer_list<std::int64_t> sizes, runtime::DType dtype,
           const runtime::Stream& stream, std::int64_t offset = 0);
/// The same, every bit set: what must not be read.
Placed put_nothing(std::initializer_list<std::int64_t> sizes, runtime::DType dtype,
                   const runtime::Stream& stream, std::int64_t offset = 0);

/// Waits for the stream; a contiguous view.
Values get(runtime::ConstTensorView view, const runtime::Stream& stream);
std::vector<std::uint8_t> get_bytes(runtime::ConstTensorView view, const runtime::Stream& stream);

/// The dtype's value nearest to `value`, ties to even, without the library's own conversion.
double rounded(double value, runtime::DType dtype);
/// Half a unit in the last place of a value of magnitude 1: a rounding's relative error.
double unit_roundoff(runtime::DType dtype);

/// Every |actual - expected| is at most `bound` * scale of the element; NaN is never.
void expect_within(const Values& actual, const Values& expected, const Values& scales,
                   double bound);
/// The scales are the expected values' magnitudes and their root mean square.
void expect_near(const Values& actual, const Values& expected, double bound);

}  // namespace longhaul::test
