#pragma once
// AMX: eight tiles of 16 rows of 64 bytes, and sums of products of bfloat16 in them. In assembly,
// since the compiler's intrinsics do not say that a load of a tile reads memory: a store before it
// could come too late. That also needs no target; a source of AMX kernels (*_amx_cpu.cpp) sets one
// behind its includes, for AVX-512.

#include <cstddef>
#include <cstdint>

namespace longhaul::attention::amx {

constexpr std::int64_t kTileRows = 16;     ///< of A and of sums; pairs of rows of B
constexpr std::int64_t kTileColumns = 16;  ///< of B and of sums, float32
constexpr std::int64_t kTileDepth = 32;    ///< bfloat16 of a row of A
constexpr std::int64_t kTileValues = 512;  ///< bfloat16 of a tile

/// Tiles of this thread, all of 16 rows of 64 bytes, while it lives: where tiles are in use a
/// switch of threads costs 8 KiB more.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) Config {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};  // there are eight
    };
    static_assert(sizeof(Config) == 64);
    static constexpr Config kConfig;
    asm volatile("ldtilecfg %0" ::"m"(kConfig));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

/// store: C = A B. add: C += A B.
enum class Into : unsigned char { store, add };

/// C[32, 32] of A[32, depth] and B[depth, 32], two tiles by two: four loads for four products.
/// `lda` and `ldc` are elements from row to row; B's left and right 16 columns are tiles behind
/// each other; `depth` is a multiple of 32. Calls `between` after each four products, for what
/// other units can do meanwhile.
template <Into into, class Between>
inline void multiply(const std::uint16_t* a, std::int64_t lda, const std::uint16_t* left,
                     const std::uint16_t* right, std::int64_t depth, float* c, std::int64_t ldc,
                     const Between& between) {
  const std::int64_t a_bytes = lda * 2, c_bytes = ldc * 4, b_bytes = 64;
  if (into == Into::store) {
    asm volatile("tilezero %tmm0; tilezero %tmm1; tilezero %tmm2; tilezero %tmm3");
  } else {
    asm volatile(
        "tileloadd (%0,%2,1), %%tmm0; tileloadd 64(%0,%2,1), %%tmm1;"
        "tileloadd (%1,%2,1), %%tmm2; tileloadd 64(%1,%2,1), %%tmm3" ::"r"(c),
        "r"(c + kTileRows * ldc), "r"(c_bytes)
        : "memory");
  }
  for (std::int64_t k = 0; k < depth; k += kTileDepth) {
    asm volatile(
        "tileloadd (%0,%2,1), %%tmm4; tileloadd (%3,%5,1), %%tmm6;"
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0; tileloadd (%4,%5,1), %%tmm7;"
        "tdpbf16ps %%tmm7, %%tmm4, %%tmm1; tileloadd (%1,%2,1), %%tmm5;"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2; tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::"r"(a + k),
        "r"(a + kTileRows * lda + k), "r"(a_bytes), "r"(left + k * kTileColumns),
        "r"(right + k * kTileColumns), "r"(b_bytes)
        : "memory");
    between();
  }
  asm volatile(
      "tilestored %%tmm0, (%0,%2,1); tilestored %%tmm1, 64(%0,%2,1);"
      "tilestored %%tmm2, (%1,%2,1); tilestored %%tmm3, 64(%1,%2,1)" ::"r"(c),
      "r"(c + kTileRows * ldc), "r"(c_bytes)
      : "memory");
}

}  // namespace longhaul::attention::amx
