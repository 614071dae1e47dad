#include "tests/support/ops_data.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/ops/host_copy.h"

namespace longhaul::test {
namespace {

using namespace runtime;

template <class T>
std::vector<T> converted(const Values& values) {
  std::vector<T> result;
  for (const double value : values) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      result.push_back(BFloat16(static_cast<float>(value)));
    } else {
      result.push_back(static_cast<T>(value));
    }
  }
  return result;
}

template <class T>
Values downloaded(ConstTensorView view, const Stream& stream) {
  const auto host = ops::download<T>(view, stream);
  stream.synchronize(deadline_in(120));
  Values result;
  for (const T value : *host) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      result.push_back(static_cast<double>(static_cast<float>(value)));
    } else {
      result.push_back(static_cast<double>(value));
    }
  }
  return result;
}

TensorView as_bytes(TensorView view) {
  return {view.data(), DType::uint8, view.device(), {view.bytes()}};
}
ConstTensorView as_bytes(ConstTensorView view) {
  return {view.data(), DType::uint8, view.device(), {view.bytes()}};
}

}  // namespace

Placed put_nothing(std::initializer_list<std::int64_t> sizes, DType dtype, const Stream& stream,
                   std::int64_t offset) {
  std::int64_t elements = 1;
  for (const std::int64_t size : sizes) elements *= size;
  Placed placed;
  placed.memory = Tensor({elements + offset + 1}, dtype, stream);
  ops::upload(std::vector<std::uint8_t>(at(placed.memory.bytes()), 0xff),
              as_bytes(placed.memory.view()), stream);
  placed.view = TensorView(placed.memory.view().data() + offset * size_bytes(dtype), dtype,
                           stream.device(), sizes);
  return placed;
}

Placed put(const Values& values, std::initializer_list<std::int64_t> sizes, DType dtype,
           const Stream& stream, std::int64_t offset) {
  Placed placed = put_nothing(sizes, dtype, stream, offset);
  switch (dtype) {
    case DType::float32:
      ops::upload(converted<float>(values), placed.view, stream);
      break;
    case DType::bfloat16:
      ops::upload(converted<BFloat16>(values), placed.view, stream);
      break;
    case DType::float64:
      ops::upload(converted<double>(values), placed.view, stream);
      break;
    case DType::int32:
      ops::upload(converted<std::int32_t>(values), placed.view, stream);
      break;
    case DType::int64:
      ops::upload(converted<std::int64_t>(values), placed.view, stream);
      break;
    case DType::uint8:
      ops::upload(converted<std::uint8_t>(values), placed.view, stream);
      break;
  }
  return placed;
}

Values get(ConstTensorView view, const Stream& stream) {
  switch (view.dtype()) {
    case DType::float32:
      return downloaded<float>(view, stream);
    case DType::bfloat16:
      return downloaded<BFloat16>(view, stream);
    case DType::float64:
      return downloaded<double>(view, stream);
    case DType::int32:
      return downloaded<std::int32_t>(view, stream);
    case DType::int64:
      return downloaded<std::int64_t>(view, stream);
    case DType::uint8:
      return downloaded<std::uint8_t>(view, stream);
  }
  return {};
}

std::vector<std::uint8_t> get_bytes(ConstTensorView view, const Stream& stream) {
  const auto host = ops::download<std::uint8_t>(as_bytes(view), stream);
  stream.synchronize(deadline_in(120));
  return *host;
}

double unit_roundoff(DType dtype) { return dtype == DType::bfloat16 ? 0x1p-8 : 0x1p-24; }

double rounded(double value, DType dtype) {
  if (!std::isfinite(value) || value == 0) return value;
  int exponent = 0;
  std::frexp(value, &exponent);
  const int digits = dtype == DType::bfloat16 ? 8 : 24;
  const int last =
      std::max(exponent - digits, -126 - digits + 1);  // subnormal: the last digit stays
  const double result = std::ldexp(std::nearbyint(std::ldexp(value, -last)), last);
  const double largest = std::ldexp(2 - std::ldexp(1, 1 - digits), 127);
  return std::abs(result) > largest ? std::copysign(INFINITY, value) : result;
}

void expect_within(const Values& actual, const Values& expected, const Values& scales,
                   double bound) {
  ASSERT_EQ(actual.size(), expected.size());
  ASSERT_EQ(scales.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(actual[i] - expected[i]) <= bound * scales[i]) continue;
    ADD_FAILURE() << "element " << i << " is " << actual[i] << ", expected " << expected[i]
                  << " within " << bound << " of " << scales[i];
    return;
  }
}

void expect_near(const Values& actual, const Values& expected, double bound) {
  double squares = 0;
  for (const double value : expected) squares += value * value;
  const double typical =
      expected.empty() ? 0 : std::sqrt(squares / static_cast<double>(expected.size()));
  Values scales;
  for (const double value : expected) scales.push_back(std::max(std::abs(value), typical));
  expect_within(actual, expected, scales, bound);
}

}  // namespace longhaul::test
