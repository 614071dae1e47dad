// The source of the CUDA kernels behind copy(), accumulate(), fill() and lists of rows, compiled
// for the host (support/cuda_emulation), against index arithmetic and rounding of the test's own.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "runtime/tensor_impl.h"

namespace longhaul::test {
namespace {

using namespace longhaul::runtime;

using Bytes = std::vector<std::byte>;
using Index = std::vector<std::int64_t>;

/// Sizes and strides of a view in some memory of 16-byte aligned bytes.
struct Layout {
  Index sizes, strides;
  std::int64_t first = 0;  // element

  /// Where element number i, counted in the order of the dims, lies.
  std::int64_t at(std::int64_t i) const {
    std::int64_t place = first;
    for (std::size_t dim = sizes.size(); dim-- > 0;) {
      place += i % sizes[dim] * strides[dim];
      i /= sizes[dim];
    }
    return place;
  }
  std::int64_t elements() const {
    return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>());
  }
  /// Elements from the beginning of the memory to behind the last one.
  std::int64_t extent() const {
    std::int64_t last = first;
    for (std::size_t dim = 0; dim < sizes.size(); ++dim)
      last += std::max<std::int64_t>(0, sizes[dim] - 1) * strides[dim];
    return last + 1;
  }
  TensorView view(Bytes& memory, DType dtype) const {
    Sizes of_sizes{}, of_strides{};
    std::ranges::copy(sizes, of_sizes.begin());
    std::ranges::copy(strides, of_strides.begin());
    TensorView view;
    view.assign(memory.data() + first * size_bytes(dtype), dtype, Device{},
                static_cast<int>(sizes.size()), of_sizes, of_strides);
    return view;
  }
};

/// The inner dims together, the outer ones apart by `gap` elements, `first` elements into the
/// memory.
Layout with_gaps(const Index& sizes, std::int64_t gap, std::int64_t first) {
  Layout layout{sizes, Index(sizes.size()), first};
  std::int64_t stride = 1;
  for (std::size_t dim = sizes.size(); dim-- > 0;) {
    layout.strides[dim] = stride;
    stride = stride * sizes[dim] + gap;
  }
  return layout;
}
/// Its dims in reverse order of memory.
Layout reversed(const Index& sizes) {
  Layout layout{sizes, Index(sizes.size())};
  std::int64_t stride = 1;
  for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
    layout.strides[dim] = stride;
    stride *= sizes[dim];
  }
  return layout;
}

const std::vector<Index> kSizes{{},         {0},          {1},          {7},
                                {128},      {5, 0, 3},    {3, 7},       {4, 32},
                                {7, 3, 16}, {2, 1, 5, 8}, {127, 2, 64}, {2, 3, 1, 5, 16},
                                {1021},     {6, 1, 48}};

/// Every pair of layouts of some sizes. Memory is aligned to 16 bytes; a gap of 16 elements and a
/// first element 16 keep packs of every dtype, the others break them.
template <class Body>
void for_each_pair(const Body& body) {
  for (const Index& sizes : kSizes) {
    std::vector<Layout> layouts{with_gaps(sizes, 0, 0), with_gaps(sizes, 16, 16),
                                with_gaps(sizes, 3, 0), with_gaps(sizes, 0, 1), reversed(sizes)};
    for (const Layout& src : layouts) {
      for (const Layout& dst : layouts) {
        std::string sizes_text;
        for (const std::int64_t size : sizes) sizes_text += std::to_string(size) + " ";
        SCOPED_TRACE(concat("sizes ", sizes_text, "from ", &src - layouts.data(), " to ",
                            &dst - layouts.data()));
        body(src, dst);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

Bytes memory_of(std::int64_t bytes, unsigned seed) {
  Bytes memory(static_cast<std::size_t>(bytes));
  std::mt19937 random(seed);
  for (std::byte& byte : memory) byte = static_cast<std::byte>(random());
  return memory;
}
template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes memory(values.size() * sizeof(T));
  std::memcpy(memory.data(), values.data(), memory.size());
  return memory;
}
template <class T>
T element(const Bytes& memory, std::int64_t at) {
  T value;
  std::memcpy(&value, memory.data() + at * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

void finish(const Stream& stream) { stream.synchronize(deadline_in(60)); }

TEST(TensorKernelsEmulated, CopiesMoveBitsOfEveryDtypeAndNothingElse) {
  const Stream stream = Stream::cpu("emulated");
  for (const DType dtype :
       {DType::uint8, DType::bfloat16, DType::float32, DType::int32, DType::float64}) {
    SCOPED_TRACE(name(dtype));
    const std::int64_t width = size_bytes(dtype);
    for_each_pair([&](const Layout& src, const Layout& dst) {
      Bytes from = memory_of(src.extent() * width, 1), to = memory_of(dst.extent() * width, 2);
      Bytes expected = to;
      for (std::int64_t i = 0; i < src.elements(); ++i)
        std::memcpy(expected.data() + dst.at(i) * width, from.data() + src.at(i) * width,
                    static_cast<std::size_t>(width));
      detail::cuda_copy_elements(src.view(from, dtype), dst.view(to, dtype), stream);
      finish(stream);
      EXPECT_TRUE(to == expected);
    });
  }
}

/// Of the two bfloat16 around a finite float, the nearer one, or the one with an even last bit.
std::uint16_t nearest_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fc0;  // compared as NaN
  const auto down = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  const auto up = static_cast<std::uint16_t>(down + 1);  // away from zero; after the last, infinity
  const auto exact = [](std::uint16_t bits) -> double {
    if ((bits & 0x7fff) == 0x7f80) return bits & 0x8000 ? -0x1p128 : 0x1p128;
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  };
  if (std::isinf(value) || exact(down) == static_cast<double>(value)) return down;
  const double below = std::abs(value - exact(down)), above = std::abs(exact(up) - value);
  if (below != above) return below < above ? down : up;
  return down % 2 == 0 ? down : up;
}

float special(std::int64_t i) {
  const float values[] = {0.0f,
                          -0.0f,
                          1.0f,
                          1.00390625f,
                          1.01171875f,
                          -3.1415927f,
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::max(),
                          std::numeric_limits<float>::lowest(),
                          std::numeric_limits<float>::min(),
                          std::numeric_limits<float>::denorm_min(),
                          1e-39f,
                          65504.5f};
  const auto count = static_cast<std::int64_t>(std::size(values));
  return i % 3 == 0
             ? values[i / 3 % count]
             : std::ldexp(static_cast<float>(i % 1009) + 0.3f, static_cast<int>(i % 200) - 100);
}

/// Memory of `dtype` whose elements are as special floats, or random bits that are none.
Bytes special_memory(DType dtype, std::int64_t elements) {
  std::vector<float> floats;
  for (std::int64_t i = 0; i < elements; ++i) floats.push_back(special(i));
  if (dtype == DType::float32) return bytes_of(floats);
  if (dtype == DType::float64) return bytes_of(std::vector<double>(floats.begin(), floats.end()));
  std::vector<std::uint16_t> halves;
  for (const float value : floats) halves.push_back(nearest_bfloat16(value));
  return bytes_of(halves);
}
float as_float(DType dtype, const Bytes& memory, std::int64_t at) {
  if (dtype == DType::float32) return element<float>(memory, at);
  if (dtype == DType::float64) return static_cast<float>(element<double>(memory, at));
  return std::bit_cast<float>(static_cast<std::uint32_t>(element<std::uint16_t>(memory, at)) << 16);
}
/// Puts what the cast of `value` is into `memory`; a NaN is any NaN.
void put(DType dtype, float value, Bytes& memory, std::int64_t at) {
  const auto write = [&](auto bits) {
    std::memcpy(memory.data() + at * static_cast<std::int64_t>(sizeof bits), &bits, sizeof bits);
  };
  if (dtype == DType::float32) return write(value);
  if (dtype == DType::float64) return write(static_cast<double>(value));
  write(nearest_bfloat16(value));
}
void expect_same_floats(DType dtype, const Bytes& actual, const Bytes& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  const std::int64_t width = size_bytes(dtype);
  for (std::int64_t i = 0; i < std::ssize(actual) / width; ++i) {
    const float a = as_float(dtype, actual, i), b = as_float(dtype, expected, i);
    if (std::isnan(a) && std::isnan(b)) continue;
    ASSERT_EQ(std::memcmp(actual.data() + i * width, expected.data() + i * width,
                          static_cast<std::size_t>(width)),
              0)
        << "element " << i << " is " << a << ", expected " << b;
  }
}

TEST(TensorKernelsEmulated, CastsRoundToNearestEven) {
  const Stream stream = Stream::cpu("emulated");
  const DType floats[] = {DType::float32, DType::bfloat16, DType::float64};
  for (const DType from_dtype : floats) {
    for (const DType to_dtype : floats) {
      if (from_dtype == to_dtype) continue;
      SCOPED_TRACE(concat(name(from_dtype), " to ", name(to_dtype)));
      for_each_pair([&](const Layout& src, const Layout& dst) {
        Bytes from = special_memory(from_dtype, src.extent());
        Bytes to = memory_of(dst.extent() * size_bytes(to_dtype), 3), expected = to;
        for (std::int64_t i = 0; i < src.elements(); ++i)
          put(to_dtype, as_float(from_dtype, from, src.at(i)), expected, dst.at(i));
        detail::cuda_copy_elements(src.view(from, from_dtype), dst.view(to, to_dtype), stream);
        finish(stream);
        expect_same_floats(to_dtype, to, expected);
      });
    }
  }
}

std::vector<float> numbers(std::int64_t count, int seed) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>((i * 37 + seed * 101) % 1009) / 7.0f);
  return values;
}

TEST(TensorKernelsEmulated, AccumulateAddsWhereTheViewsLie) {
  const Stream stream = Stream::cpu("emulated");
  for_each_pair([&](const Layout& src, const Layout& dst) {
    const std::vector<float> terms = numbers(src.extent(), 1);
    std::vector<float> sums = numbers(dst.extent(), 2);
    Bytes from = bytes_of(terms), to = bytes_of(sums);
    for (std::int64_t i = 0; i < src.elements(); ++i)
      sums[static_cast<std::size_t>(dst.at(i))] += terms[static_cast<std::size_t>(src.at(i))];
    detail::cuda_accumulate(src.view(from, DType::float32), dst.view(to, DType::float32), stream);
    finish(stream);
    EXPECT_TRUE(to == bytes_of(sums));
  });
}

TEST(TensorKernelsEmulated, FillsEveryDtypeAndNothingElse) {
  const Stream stream = Stream::cpu("emulated");
  const auto check = [&]<class T>(DType dtype, double value, T bits) {
    SCOPED_TRACE(name(dtype));
    for_each_pair([&](const Layout& layout, const Layout& other) {
      if (&layout != &other) return;
      Bytes to = memory_of(layout.extent() * size_bytes(dtype), 4), expected = to;
      for (std::int64_t i = 0; i < layout.elements(); ++i)
        std::memcpy(expected.data() + layout.at(i) * size_bytes(dtype), &bits, sizeof bits);
      detail::cuda_fill(layout.view(to, dtype), value, stream);
      finish(stream);
      EXPECT_TRUE(to == expected);
    });
  };
  check(DType::float32, -1.5, -1.5f);
  check(DType::bfloat16, 3.14159265, std::uint16_t{0x4049});
  check(DType::float64, 0.1, 0.1);
  check(DType::int32, -7, std::int32_t{-7});
  check(DType::int64, -7e12, std::int64_t{-7'000'000'000'000});
  check(DType::uint8, 255, std::uint8_t{255});
}

/// A list of moves in use, with its table where the host's kernels read it: it must live until they
/// have.
RowList listed(const std::vector<RowMove>& moves) {
  auto made = std::make_shared<const RowMoves>(moves);
  const std::byte* table = made->table().data();
  return {std::move(made), table};
}

/// Lists over 40 rows of one view and 50 of another; no row of the second is in two moves.
const std::vector<std::vector<RowMove>> kLists{
    {},
    {{3, 5, 0}},
    {{0, 10, 40}},
    {{39, 0, 1}, {0, 49, 1}, {7, 20, 13}, {7, 33, 7}},
    {{0, 1, 1}, {1, 3, 1}, {2, 5, 1}, {3, 7, 1}, {4, 9, 1}, {38, 48, 2}, {5, 11, 3}, {8, 14, 3}}};

template <class Body>
void for_each_list(const Body& body) {
  for (const Index& inner :
       std::vector<Index>{{1}, {4}, {7}, {48}, {3, 5}, {8, 16}, {2, 129}, {3, 0}, {5, 64}}) {
    for (const std::int64_t gap : {0, 1, 16}) {
      for (std::size_t list = 0; list < kLists.size(); ++list) {
        Index src{40}, dst{50};
        src.insert(src.end(), inner.begin(), inner.end());
        dst.insert(dst.end(), inner.begin(), inner.end());
        SCOPED_TRACE(
            concat("rows of ", inner[0], " x ", inner.back(), ", gap ", gap, ", list ", list));
        body(with_gaps(src, gap, gap), with_gaps(dst, gap, 0), kLists[list]);
        // Rows that packs could take, were it not for the distance between them.
        body(with_gaps(src, gap, 0), with_gaps(dst, 0, 0), kLists[list]);
        body(with_gaps(src, 0, 0), with_gaps(dst, gap, 0), kLists[list]);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}
/// Calls body(element of src, element of dst) for all elements of the moves.
template <class Body>
void for_each_moved(const Layout& src, const Layout& dst, const std::vector<RowMove>& moves,
                    const Body& body) {
  const std::int64_t width = src.elements() / src.sizes[0];
  for (const RowMove& move : moves) {
    for (std::int64_t i = 0; i < move.count * width; ++i)
      body(src.at(move.from * width + i), dst.at(move.to * width + i));
  }
}

TEST(TensorKernelsEmulated, RowsOfAListAreCopiedCastAndAdded) {
  const Stream stream = Stream::cpu("emulated");
  struct Pair {
    DType from, to;
  };
  for (const auto& [from_dtype, to_dtype] :
       {Pair{DType::float32, DType::float32}, Pair{DType::bfloat16, DType::bfloat16},
        Pair{DType::int32, DType::int32}, Pair{DType::float32, DType::bfloat16},
        Pair{DType::bfloat16, DType::float32}}) {
    SCOPED_TRACE(concat(name(from_dtype), " to ", name(to_dtype)));
    for_each_list([&](const Layout& src, const Layout& dst, const std::vector<RowMove>& moves) {
      const bool bits = from_dtype == to_dtype;
      const std::int64_t width = size_bytes(to_dtype);
      Bytes from =
          bits ? memory_of(src.extent() * width, 5) : special_memory(from_dtype, src.extent());
      Bytes to = memory_of(dst.extent() * width, 6), expected = to;
      for_each_moved(src, dst, moves, [&](std::int64_t a, std::int64_t b) {
        if (bits) {
          std::memcpy(expected.data() + b * width, from.data() + a * width,
                      static_cast<std::size_t>(width));
        } else {
          put(to_dtype, as_float(from_dtype, from, a), expected, b);
        }
      });
      const RowList list = listed(moves);
      detail::cuda_copy_rows(src.view(from, from_dtype), dst.view(to, to_dtype), list, stream);
      finish(stream);
      if (bits) {
        EXPECT_TRUE(to == expected);
      } else {
        expect_same_floats(to_dtype, to, expected);
      }
    });
  }
  for_each_list([&](const Layout& src, const Layout& dst, const std::vector<RowMove>& moves) {
    const std::vector<float> terms = numbers(src.extent(), 3);
    std::vector<float> sums = numbers(dst.extent(), 4);
    Bytes from = bytes_of(terms), to = bytes_of(sums);
    for_each_moved(src, dst, moves, [&](std::int64_t a, std::int64_t b) {
      sums[static_cast<std::size_t>(b)] += terms[static_cast<std::size_t>(a)];
    });
    const RowList list = listed(moves);
    detail::cuda_accumulate_rows(src.view(from, DType::float32), dst.view(to, DType::float32), list,
                                 stream);
    finish(stream);
    EXPECT_TRUE(to == bytes_of(sums));
  });
}

}  // namespace
}  // namespace longhaul::test
