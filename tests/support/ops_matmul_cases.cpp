// Matrix products of every shape, orientation and dtype.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/ops/matmul.h"
#include "tests/support/host_tensors.h"
#include "tests/support/ops_cases.h"
#include "tests/support/ops_data.h"

namespace longhaul::test {
namespace {

using namespace runtime;
using ops::Write;

enum class Added : unsigned char { nothing, c, another };
constexpr Added kAdded[] = {Added::nothing, Added::c, Added::another};

struct Product {
  std::int64_t m = 0, n = 0, k = 0;
  bool a_transposed = false, b_transposed = false;
  DType a = DType::float32, b = DType::float32, c = DType::float32;
  Added added = Added::nothing;
  std::int64_t extra = 0;   ///< columns of the memory beyond the views'
  std::int64_t offset = 0;  ///< elements from an aligned address to the memory
};

/// rows x cols within memory of `extra` more columns, or the transpose of cols x rows of it.
struct Matrix {
  Placed memory;
  TensorView inner;
  ConstTensorView view;
};
Matrix matrix(const Values& values, std::int64_t rows, std::int64_t cols, bool transposed,
              DType dtype, const Product& p, const Stream& stream) {
  const std::int64_t outer = transposed ? cols : rows, inner = transposed ? rows : cols;
  Values memory(at(outer * (inner + p.extra)), 77);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const std::int64_t o = transposed ? col : row, i = transposed ? row : col;
      memory[at(o * (inner + p.extra) + i)] = values[at(row * cols + col)];
    }
  }
  Matrix result;
  result.memory = put(memory, {outer, inner + p.extra}, dtype, stream, p.offset);
  result.inner = result.memory.view.slice(1, 0, inner);
  result.view = transposed ? ops::transposed(result.inner) : ConstTensorView(result.inner);
  return result;
}

void expect_product(const Product& p, const Stream& stream) {
  SCOPED_TRACE(concat("m ", p.m, " n ", p.n, " k ", p.k, " transposed ", p.a_transposed,
                      p.b_transposed, " ", name(p.a), " ", name(p.b), " ", name(p.c), " extra ",
                      p.extra, " offset ", p.offset,
                      p.added == Added::nothing ? ""
                      : p.added == Added::c     ? " onto c"
                                                : " onto another"));
  const Values a = random_values(p.m * p.k, 1, p.a == DType::bfloat16),
               b = random_values(p.k * p.n, 2, p.b == DType::bfloat16);
  const Values added = p.added == Added::nothing
                           ? Values(at(p.m * p.n))
                           : random_values(p.m * p.n, 3, p.c == DType::bfloat16);
  // Overwriting must not read what is there.
  const Values start = p.added == Added::c ? added : Values(at(p.m * p.n), NAN);
  Product of_addend = p;
  if (p.extra > 0) of_addend.extra += 2;
  const Matrix ta = matrix(a, p.m, p.k, p.a_transposed, p.a, p, stream),
               tb = matrix(b, p.k, p.n, p.b_transposed, p.b, p, stream),
               addend = matrix(added, p.m, p.n, false, p.c, of_addend, stream);
  const auto addend_bytes = get_bytes(addend.memory, stream);
  std::vector<std::uint8_t> bytes[2];
  for (auto& of_run : bytes) {
    const Matrix tc = matrix(start, p.m, p.n, false, p.c, p, stream);
    if (p.added == Added::another) {
      ops::matmul_add(ta.view, tb.view, addend.view, tc.inner, stream);
    } else {
      ops::matmul(ta.view, tb.view, tc.inner, p.added == Added::c ? Write::add : Write::overwrite,
                  stream);
    }
    of_run = get_bytes(tc.memory, stream);
    if (&of_run == &bytes[1]) break;
    const Values c = get(tc.memory, stream);
    for (std::int64_t i = 0; i < p.m; ++i) {
      for (std::int64_t j = 0; j < p.n + p.extra; ++j) {
        const double actual = c[at(i * (p.n + p.extra) + j)];
        if (j >= p.n) {
          ASSERT_EQ(actual, 77) << "outside of c";
          continue;
        }
        double product = 0, magnitude = std::abs(added[at(i * p.n + j)]);
        for (std::int64_t l = 0; l < p.k; ++l) {
          const double term = a[at(i * p.k + l)] * b[at(l * p.n + j)];
          product += term;
          magnitude += std::abs(term);
        }
        const double expected = added[at(i * p.n + j)] + product;
        // Any order of k + 1 additions in fp32, and one rounding of the result; before it one of
        // the product, where it is added to another matrix.
        const double roundings =
            std::abs(expected) + (p.added == Added::another ? std::abs(product) : 0);
        const double tolerance = static_cast<double>(p.k + 1) * 0x1p-24 * magnitude +
                                 unit_roundoff(p.c) * roundings * 1.01;
        ASSERT_LE(std::abs(actual - expected), tolerance) << "c[" << i << "," << j << "]";
      }
    }
  }
  EXPECT_EQ(bytes[0], bytes[1]) << "differs between two runs";
  EXPECT_EQ(get_bytes(addend.memory, stream), addend_bytes) << "the addend was written";
}

void every_shape(const Stream& stream) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const std::int64_t m : {0, 1, 7, 127}) {
      for (const std::int64_t n : {0, 1, 5, 64}) {
        for (const std::int64_t k : {0, 1, 31, 128}) {
          for (const int transposes : {0, 1, 2, 3}) {
            for (const Added added : kAdded) {
              expect_product({m, n, k, (transposes & 1) != 0, (transposes & 2) != 0, dtype, dtype,
                              DType::float32, added},
                             stream);
            }
          }
        }
      }
    }
  }
}

void every_dtype(const Stream& stream) {
  constexpr DType kBoth[] = {DType::float32, DType::bfloat16};
  for (const DType a : kBoth) {
    for (const DType b : kBoth) {
      for (const DType c : kBoth) {
        for (const Added added : kAdded) {
          for (const int transposes : {0, 1, 2, 3}) {
            const bool first = (transposes & 1) != 0, second = (transposes & 2) != 0;
            expect_product({33, 40, 72, first, second, a, b, c, added}, stream);
            expect_product({7, 1, 129, first, second, a, b, c, added}, stream);
          }
        }
      }
    }
  }
}

void strides_and_alignments(const Stream& stream) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const std::int64_t extra : {1, 8}) {
      for (const std::int64_t offset : {0, 1, 4}) {
        for (const int transposes : {0, 1, 2, 3}) {
          for (const Added added : {Added::c, Added::another}) {
            expect_product({40, 48, 64, (transposes & 1) != 0, (transposes & 2) != 0, dtype, dtype,
                            dtype, added, extra, offset},
                           stream);
          }
        }
      }
    }
  }
}

void many_terms(const Stream& stream) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const bool transposed : {false, true}) {
      // Few elements of c and a long sum, where a library may cut the depth.
      expect_product({8, 16, 8192, transposed, !transposed, dtype, dtype, DType::float32, Added::c},
                     stream);
      for (const Added added : {Added::nothing, Added::another}) {
        expect_product({8, 16, 8192, transposed, !transposed, dtype, dtype, dtype, added}, stream);
        expect_product({131, 259, 1031, transposed, transposed, dtype, dtype, dtype, added},
                       stream);
      }
    }
  }
}

constexpr OpsCase kCases[] = {
    {"EveryShape", every_shape},
    {"EveryDType", every_dtype},
    {"StridesAndAlignments", strides_and_alignments},
    {"ManyTerms", many_terms},
};

}  // namespace

std::span<const OpsCase> matmul_cases() { return kCases; }

}  // namespace longhaul::test
