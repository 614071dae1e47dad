#pragma once
// The one inner loop of the CPU kernels: C[rows, 16] (+)= A[rows, depth] B[depth, 16] in registers,
// rows <= 6 (12 of the 16 AVX2 registers accumulate). B is a packed panel, or 16 columns of a
// matrix of row stride `ldb`, 32-byte aligned; A is read by broadcasts, either row by row or
// transposed, so P and P^T need no copy. C has padded columns: every store is whole.

#include <immintrin.h>

#include <cstdint>

namespace longhaul::attention::avx2 {

constexpr std::int64_t kTileRows = 6;
constexpr std::int64_t kTileColumns = 16;

/// store: C = A B. add: C += A B, the product summed on its own first. chain: C is where the sum
/// starts.
enum class Into { store, add, chain };
/// A(r, k) = a[r * lda + k], or transposed a[k * lda + r].
enum class Operand { rows, columns };

template <int Rows, Operand operand, Into into>
inline void multiply_tile(const float* a, std::int64_t lda, const float* b, std::int64_t depth,
                          float* c, std::int64_t ldc, std::int64_t ldb = kTileColumns) {
  __m256 sum[Rows][2];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
    sum[r][0] = into == Into::chain ? _mm256_loadu_ps(c + r * ldc) : _mm256_setzero_ps();
    sum[r][1] = into == Into::chain ? _mm256_loadu_ps(c + r * ldc + 8) : _mm256_setzero_ps();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
    b += ldb;
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const __m256 x = _mm256_broadcast_ss(operand == Operand::rows ? a + r * lda : a + r);
      sum[r][0] = _mm256_fmadd_ps(x, b0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(x, b1, sum[r][1]);
    }
    a += operand == Operand::rows ? 1 : lda;
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
    if (into == Into::add) {
      sum[r][0] = _mm256_add_ps(sum[r][0], _mm256_loadu_ps(c + r * ldc));
      sum[r][1] = _mm256_add_ps(sum[r][1], _mm256_loadu_ps(c + r * ldc + 8));
    }
    _mm256_storeu_ps(c + r * ldc, sum[r][0]);
    _mm256_storeu_ps(c + r * ldc + 8, sum[r][1]);
  }
}

/// multiply_tile for 1 to 6 rows.
template <Operand operand, Into into>
inline void multiply(std::int64_t rows, const float* a, std::int64_t lda, const float* b,
                     std::int64_t depth, float* c, std::int64_t ldc,
                     std::int64_t ldb = kTileColumns) {
  switch (rows) {
    case 6:
      return multiply_tile<6, operand, into>(a, lda, b, depth, c, ldc, ldb);
    case 5:
      return multiply_tile<5, operand, into>(a, lda, b, depth, c, ldc, ldb);
    case 4:
      return multiply_tile<4, operand, into>(a, lda, b, depth, c, ldc, ldb);
    case 3:
      return multiply_tile<3, operand, into>(a, lda, b, depth, c, ldc, ldb);
    case 2:
      return multiply_tile<2, operand, into>(a, lda, b, depth, c, ldc, ldb);
    default:
      return multiply_tile<1, operand, into>(a, lda, b, depth, c, ldc, ldb);
  }
}

}  // namespace longhaul::attention::avx2
