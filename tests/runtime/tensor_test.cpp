#include "runtime/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace longhaul::runtime {
namespace {

const Deadline kSoon = deadline_in(100);

template <class T>
Tensor counting(std::initializer_list<std::int64_t> sizes, const Stream& stream) {
  Tensor tensor(sizes, DTypeOf<T>::value, stream);
  stream.cpu_task([to = tensor.as<T>(), n = tensor.elements()] {
    for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(static_cast<float>(i));
  });
  return tensor;
}

template <class T>
std::vector<T> read(const Tensor& tensor, const Stream& stream) {
  stream.synchronize(kSoon);
  return {tensor.as<T>(), tensor.as<T>() + tensor.elements()};
}

TEST(TensorView, SizesStridesAndSlices) {
  const Stream stream = Stream::cpu("s");
  const Tensor tensor = counting<float>({2, 3, 5}, stream);
  stream.synchronize(kSoon);
  const TensorView view = tensor;
  EXPECT_EQ(view.elements(), 30);
  EXPECT_EQ(view.bytes(), 120);
  EXPECT_EQ(view.stride(0), 15);
  EXPECT_EQ(view.stride(2), 1);
  EXPECT_TRUE(view.contiguous());
  const TensorView inner = view.slice(1, 1, 3);
  EXPECT_FALSE(inner.contiguous());
  EXPECT_EQ(*inner.as<float>(), 5.0f);
  EXPECT_TRUE(view.slice(0, 1, 2).contiguous());
  EXPECT_TRUE(view.slice(0, 1, 2).slice(1, 0, 2).contiguous());
  EXPECT_TRUE(inner.slice(2, 0, 0).contiguous());
  EXPECT_EQ(view.reshape({6, 5}).stride(0), 5);
  EXPECT_THROW(inner.reshape({20}), Error);
  EXPECT_THROW(view.reshape({29}), Error);
  EXPECT_THROW(view.slice(1, 2, 4), Error);
  EXPECT_THROW(view.slice(1, 2, 1), Error);
  EXPECT_THROW(view.slice(3, 0, 1), Error);
  EXPECT_THROW(view.as<double>(), Error);
  EXPECT_THROW(Tensor({1, 1, 1, 1, 1, 1}, DType::float32, stream), Error);
  EXPECT_THROW(Tensor({-1}, DType::float32, stream), Error);
}

TEST(Tensor, OwnsAndMoves) {
  const Stream stream = Stream::cpu("s");
  Tensor a({7}, DType::float64, stream);
  std::byte* data = a.view().data();
  const Tensor b = std::move(a);
  EXPECT_EQ(b.view().data(), data);
  EXPECT_EQ(stream.memory().current_bytes, 56);
  EXPECT_TRUE(Tensor().empty());
  const Tensor scalar({}, DType::float32, stream);
  EXPECT_EQ(scalar.elements(), 1);
  fill(scalar, 3, stream);
  EXPECT_EQ(read<float>(scalar, stream)[0], 3.0f);
}

/// Every pair of strided source and target boxes against a loop over coordinates.
template <class From, class To>
void strided_case() {
  const Stream stream = Stream::cpu("s");
  const Tensor source = counting<From>({4, 5, 6}, stream);
  const Tensor target({5, 7, 4}, DTypeOf<To>::value, stream);
  fill(target, -1, stream);
  // A transposed box [3, 3, 4] of the source: dims (1, 0, 2) from (1, 1, 2).
  TensorView box;
  box.assign(source.view().data() + (30 + 6 + 2) * size_bytes(source.dtype()), source.dtype(), {},
             3, {3, 3, 4}, {6, 30, 1});
  runtime::copy(box, target.view().slice(0, 1, 4).slice(1, 2, 5), stream);
  const auto values = read<To>(target, stream);
  for (std::int64_t a = 0; a < 5; ++a) {
    for (std::int64_t b = 0; b < 7; ++b) {
      for (std::int64_t c = 0; c < 4; ++c) {
        const bool inside = a >= 1 && a < 4 && b >= 2 && b < 5;
        const auto expected = inside ? (b - 2 + 1) * 30 + (a - 1 + 1) * 6 + c + 2 : -1;
        EXPECT_EQ(static_cast<float>(values[static_cast<std::size_t>((a * 7 + b) * 4 + c)]),
                  static_cast<float>(expected));
      }
    }
  }
}

TEST(Copy, StridedAndCasting) {
  strided_case<float, float>();
  strided_case<float, BFloat16>();
  strided_case<float, double>();
  strided_case<BFloat16, float>();
  strided_case<BFloat16, BFloat16>();
  strided_case<BFloat16, double>();
  strided_case<double, float>();
  strided_case<double, BFloat16>();
  strided_case<double, double>();
}

TEST(Copy, StridedIntegersAndInnerStride) {
  const Stream stream = Stream::cpu("s");
  const Tensor source({3, 4}, DType::int64, stream), target({4, 3}, DType::int64, stream);
  stream.cpu_task(
      [to = source.as<std::int64_t>()] { std::iota(to, to + 12, std::int64_t{1} << 40); });
  TensorView transposed;
  transposed.assign(target.view().data(), DType::int64, {}, 2, {3, 4}, {1, 3});
  runtime::copy(source, transposed, stream);
  const auto values = read<std::int64_t>(target, stream);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 4; ++j) {
      EXPECT_EQ(values[j * 3 + i], (std::int64_t{1} << 40) + static_cast<std::int64_t>(i * 4 + j));
    }
  }
}

TEST(Copy, NastySizes) {
  const Stream stream = Stream::cpu("s");
  for (const std::int64_t n : {0, 1, 7, 127, 1009}) {
    const Tensor source = counting<float>({n}, stream);
    const Tensor target({n}, DType::bfloat16, stream), back({n}, DType::float32, stream);
    runtime::copy(source, target, stream);
    runtime::copy(target, back, stream);
    const auto values = read<float>(back, stream);
    for (std::size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(values[i], static_cast<float>(BFloat16(static_cast<float>(i))));
    }
  }
  const Tensor empty({3, 0, 2}, DType::float32, stream);
  runtime::copy(empty, empty, stream);
  fill(empty, 1, stream);
  stream.synchronize(kSoon);
}

TEST(Copy, RefusesOtherSizesAndCasts) {
  const Stream stream = Stream::cpu("s");
  const Tensor a({2, 3}, DType::float32, stream), b({3, 2}, DType::float32, stream);
  EXPECT_THROW(runtime::copy(a, b, stream), Error);
  EXPECT_THROW(runtime::copy(a, b.view().reshape({6}), stream), Error);
  const Tensor integers({2, 3}, DType::int32, stream);
  runtime::copy(integers, a, stream);
  EXPECT_THROW(stream.synchronize(kSoon), Error);
}

TEST(Fill, EveryDType) {
  const Stream stream = Stream::cpu("s");
  const auto first = [&](DType dtype, double value) {
    const Tensor tensor({3}, dtype, stream);
    fill(tensor, value, stream);
    const Tensor wide({3}, DType::float64, stream);
    stream.synchronize(kSoon);
    switch (dtype) {
      case DType::float32:
        return static_cast<double>(tensor.as<float>()[2]);
      case DType::bfloat16:
        return static_cast<double>(static_cast<float>(tensor.as<BFloat16>()[2]));
      case DType::float64:
        return tensor.as<double>()[2];
      case DType::int32:
        return static_cast<double>(tensor.as<std::int32_t>()[2]);
      case DType::int64:
        return static_cast<double>(tensor.as<std::int64_t>()[2]);
      case DType::uint8:
        return static_cast<double>(tensor.as<std::uint8_t>()[2]);
    }
    return 0.0;
  };
  EXPECT_EQ(first(DType::float32, 0.1), 0.1f);
  EXPECT_EQ(first(DType::bfloat16, 257), 256);  // a tie goes to even
  EXPECT_EQ(first(DType::bfloat16, 259), 260);
  EXPECT_EQ(first(DType::float64, 0.1), 0.1);
  EXPECT_EQ(first(DType::int32, -7), -7);
  EXPECT_EQ(first(DType::int64, 1e15), 1e15);
  EXPECT_EQ(first(DType::uint8, 200), 200);
  const Tensor matrix({4, 4}, DType::float32, stream);
  fill(matrix, 0, stream);
  fill(matrix.view().slice(1, 1, 3), 1, stream);
  const auto values = read<float>(matrix, stream);
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), 0.0f), 8.0f);
  EXPECT_EQ(values[0], 0.0f);
  EXPECT_EQ(values[14], 1.0f);
}

TEST(BFloat16, RoundsToNearestEven) {
  const auto rounded = [](float value) { return static_cast<float>(BFloat16(value)); };
  // The spacing of bfloat16 in [1, 2) is 2^-7.
  EXPECT_EQ(rounded(1.0f + 0x1p-8f), 1.0f);
  EXPECT_EQ(rounded(1.0f + 3 * 0x1p-8f), 1.0f + 0x1p-6f);
  EXPECT_EQ(rounded(1.0f + 0x1p-8f + 0x1p-20f), 1.0f + 0x1p-7f);
  EXPECT_EQ(rounded(-1.0f - 0x1p-8f), -1.0f);
  EXPECT_EQ(rounded(std::numeric_limits<float>::max()), std::numeric_limits<float>::infinity());
  EXPECT_EQ(rounded(-std::numeric_limits<float>::infinity()),
            -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(rounded(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(rounded(std::bit_cast<float>(0x7f800001u))));
  EXPECT_TRUE(std::signbit(rounded(-0.0f)));
  // The nearest of all 2^16 values, for a walk over the floats' bits.
  for (std::uint32_t bits = 1; bits < 0x7f000000u; bits += 0x00123457u) {
    const float value = std::bit_cast<float>(bits);
    const std::uint16_t down = static_cast<std::uint16_t>(bits >> 16);
    const double low = std::bit_cast<float>(static_cast<std::uint32_t>(down) << 16);
    const double high = std::bit_cast<float>(static_cast<std::uint32_t>(down + 1) << 16);
    const double distance = std::min(value - low, high - value);
    EXPECT_EQ(std::abs(static_cast<double>(rounded(value)) - value), distance) << value;
  }
}

TEST(DType, Names) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float64, DType::int32,
                            DType::int64, DType::uint8}) {
    EXPECT_EQ(dtype_from_name(name(dtype)), dtype);
  }
  EXPECT_THROW(dtype_from_name("float16"), Error);
}

}  // namespace
}  // namespace longhaul::runtime
