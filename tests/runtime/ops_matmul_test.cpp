#include "runtime/ops/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/host_tensors.h"

namespace longhaul::runtime::ops {
namespace {

using test::make_tensor;
using test::random_values;
using test::read;
using test::read_bytes;

enum class Added : unsigned char { nothing, c, another };
constexpr Added kAdded[] = {Added::nothing, Added::c, Added::another};

struct Case {
  std::int64_t m = 0, n = 0, k = 0;
  bool a_transposed = false, b_transposed = false;
  DType a = DType::float32, b = DType::float32, c = DType::float32;
  Added added = Added::nothing;
};

/// sum_l a(i,l) b(l,j) of the stored matrices, in T.
template <class T>
std::vector<double> product(const Case& p, const std::vector<double>& a,
                            const std::vector<double>& b) {
  const auto m = static_cast<std::size_t>(p.m), n = static_cast<std::size_t>(p.n),
             k = static_cast<std::size_t>(p.k);
  std::vector<T> rows(m * k), columns(n * k);  // k innermost in both
  for (std::size_t l = 0; l < k; ++l) {
    for (std::size_t i = 0; i < m; ++i)
      rows[i * k + l] = static_cast<T>(a[p.a_transposed ? l * m + i : i * k + l]);
    for (std::size_t j = 0; j < n; ++j)
      columns[j * k + l] = static_cast<T>(b[p.b_transposed ? j * k + l : l * n + j]);
  }
  std::vector<double> c;
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      T sum = 0;
      for (std::size_t l = 0; l < k; ++l) sum += rows[i * k + l] * columns[j * k + l];
      c.push_back(static_cast<double>(sum));
    }
  }
  return c;
}

Tensor run(const Case& p, const std::vector<double>& a, const std::vector<double>& b,
           const std::vector<double>& added, const Stream& stream) {
  const Tensor ta = p.a_transposed ? make_tensor(a, {p.k, p.m}, p.a, stream)
                                   : make_tensor(a, {p.m, p.k}, p.a, stream);
  const Tensor tb = p.b_transposed ? make_tensor(b, {p.n, p.k}, p.b, stream)
                                   : make_tensor(b, {p.k, p.n}, p.b, stream);
  const ConstTensorView left = p.a_transposed ? transposed(ta) : ConstTensorView(ta),
                        right = p.b_transposed ? transposed(tb) : ConstTensorView(tb);
  // Overwriting must not read what is there.
  const std::vector<double> nothing(added.size(), std::numeric_limits<double>::quiet_NaN());
  Tensor c = make_tensor(p.added == Added::c ? added : nothing, {p.m, p.n}, p.c, stream);
  if (p.added == Added::another) {
    matmul_add(left, right, make_tensor(added, {p.m, p.n}, p.c, stream), c, stream);
  } else {
    matmul(left, right, c, p.added == Added::c ? Write::add : Write::overwrite, stream);
  }
  return c;
}

void expect_product(const Case& p) {
  SCOPED_TRACE(concat("m ", p.m, " n ", p.n, " k ", p.k, " transposed ", p.a_transposed,
                      p.b_transposed, " ", name(p.a), " ", name(p.b), " ", name(p.c),
                      p.added == Added::nothing ? ""
                      : p.added == Added::c     ? " onto c"
                                                : " onto another"));
  const auto count = [](std::int64_t rows, std::int64_t cols) { return rows * cols; };
  const auto a = random_values(count(p.m, p.k), 1, p.a == DType::bfloat16);
  const auto b = random_values(count(p.k, p.n), 2, p.b == DType::bfloat16);
  std::vector<double> added(static_cast<std::size_t>(p.m * p.n));
  if (p.added != Added::nothing) added = random_values(p.m * p.n, 3, p.c == DType::bfloat16);
  std::vector<double> expected = product<double>(p, a, b), plain = product<float>(p, a, b);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expected[i] += added[i];
    plain[i] = static_cast<double>(static_cast<float>(plain[i]) + static_cast<float>(added[i]));
  }
  const double rounding = p.c == DType::bfloat16 ? 0x1p-8 : 3e-6;
  const double tolerance = std::max(rounding, 2 * test::relative_error(plain, expected));
  const Stream one = Stream::cpu("one", 1);
  const Tensor c = run(p, a, b, added, one);
  EXPECT_LE(test::relative_error(read(c, one), expected), tolerance);
  for (const int threads : {2, 7}) {
    const Stream several = Stream::cpu("several", threads);
    EXPECT_EQ(read_bytes(c, one), read_bytes(run(p, a, b, added, several), several))
        << "differs between 1 and " << threads << " threads";
  }
}

TEST(Matmul, EveryShapeAndTranspose) {
  for (const std::int64_t m : {0, 1, 7, 127}) {
    for (const std::int64_t n : {0, 1, 5, 64}) {
      for (const std::int64_t k : {0, 1, 31, 128}) {
        for (const int transposes : {0, 1, 2, 3}) {
          for (const Added added : kAdded) {
            expect_product({m, n, k, (transposes & 1) != 0, (transposes & 2) != 0, DType::float32,
                            DType::float32, DType::float32, added});
          }
        }
      }
    }
  }
}

TEST(Matmul, ManyTilesAndPanels) {
  for (const int transposes : {0, 1, 2, 3}) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      for (const Added added : kAdded) {
        expect_product({131, 259, 1031, (transposes & 1) != 0, (transposes & 2) != 0, dtype, dtype,
                        dtype, added});
        expect_product({129, 257, 513, (transposes & 1) != 0, (transposes & 2) != 0, dtype,
                        DType::float32, DType::float32, added});
      }
    }
  }
}

// Tiles of several columns and of every height, and blocks of the depth that are not alike.
TEST(Matmul, TallWideAndDeep) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const int transposes : {0, 1, 2, 3}) {
      const bool first = (transposes & 1) != 0, second = (transposes & 2) != 0;
      expect_product({1061, 523, 31, first, second, dtype, dtype, dtype, Added::another});
      expect_product({33, 1031, 521, first, second, dtype, dtype, dtype, Added::nothing});
    }
    expect_product({29, 41, 16001, true, false, dtype, dtype, DType::float32, Added::another});
    expect_product({29, 41, 15001, false, true, dtype, dtype, dtype, Added::c});
  }
}

// What is padded or packed beside a number meets no other's row or column.
TEST(Matmul, ANaNStaysInItsRowAndColumn) {
  const Stream stream = Stream::cpu("ops", 2);
  constexpr std::int64_t m = 531, n = 83, k = 397, row = 128, column = 81;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const int transposes : {0, 1, 2, 3}) {
      const bool first = (transposes & 1) != 0, second = (transposes & 2) != 0;
      std::vector<double> a = random_values(m * k, 4), b = random_values(k * n, 5);
      const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
      a[at(first ? 396 * m + row : row * k + 396)] = std::numeric_limits<double>::quiet_NaN();
      b[at(second ? column * k + 396 : 396 * n + column)] = std::numeric_limits<double>::infinity();
      const Case p{m, n, k, first, second, dtype, dtype, dtype, Added::nothing};
      const auto c = read(run(p, a, b, std::vector<double>(at(m * n)), stream), stream);
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          ASSERT_EQ(std::isfinite(c[at(i * n + j)]), i != row && j != column)
              << i << ", " << j << " " << name(dtype) << " transposed " << transposes;
        }
      }
    }
  }
}

TEST(Matmul, BFloat16InputsFloat32Output) {
  for (const std::int64_t m : {1, 7, 127}) {
    expect_product(
        {m, 33, 700, false, true, DType::bfloat16, DType::bfloat16, DType::float32, Added::c});
    expect_product({m, 33, 700, true, false, DType::bfloat16, DType::bfloat16, DType::float32,
                    Added::nothing});
  }
}

TEST(Matmul, StridedRowsAndSlices) {
  const Stream stream = Stream::cpu("ops", 2);
  const auto a = random_values(20 * 48, 4), b = random_values(16 * 24, 5);
  const Tensor ta = make_tensor(a, {20, 48}, DType::float32, stream);
  const Tensor tb = make_tensor(b, {16, 24}, DType::float32, stream);
  const Tensor c = make_tensor(std::vector<double>(20 * 40, 9.0), {20, 40}, DType::float32, stream);
  matmul(ta.view().slice(1, 8, 24), tb, c.view().slice(1, 3, 27), Write::overwrite, stream);
  const auto result = read(c, stream);
  for (std::int64_t i = 0; i < 20; ++i) {
    for (std::int64_t j = 0; j < 40; ++j) {
      double expected = 9;  // outside the slice nothing is touched
      if (j >= 3 && j < 27) {
        expected = 0;
        for (std::int64_t l = 0; l < 16; ++l) {
          expected += a[static_cast<std::size_t>(i * 48 + 8 + l)] *
                      b[static_cast<std::size_t>(l * 24 + j - 3)];
        }
      }
      EXPECT_NEAR(result[static_cast<std::size_t>(i * 40 + j)], expected, 3e-6 * 16);
    }
  }
}

TEST(Matmul, RefusesWrongShapesAndDtypes) {
  const Stream stream = Stream::cpu("ops");
  const Tensor a({3, 4}, DType::float32, stream), b({5, 6}, DType::float32, stream),
      c({3, 6}, DType::float32, stream);
  EXPECT_THROW(matmul(a, b, c, Write::overwrite, stream), Error);
  const Tensor d({4, 6}, DType::float64, stream);
  EXPECT_THROW(matmul(a, d, c, Write::overwrite, stream), Error);
  const Tensor right({4, 6}, DType::float32, stream), narrow({3, 6}, DType::bfloat16, stream),
      short_of({3, 5}, DType::float32, stream), upright({6, 3}, DType::float32, stream);
  EXPECT_THROW(matmul_add(a, right, narrow, c, stream), Error);
  EXPECT_THROW(matmul_add(a, right, short_of, c, stream), Error);
  EXPECT_THROW(matmul_add(a, right, transposed(upright), c, stream), Error);
}

}  // namespace
}  // namespace longhaul::runtime::ops
