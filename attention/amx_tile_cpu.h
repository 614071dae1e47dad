#pragma once
// AMX: eight tiles of 16 rows of 64 bytes, and sums of products of bfloat16 in them. Wrappers of
// the instructions that our kernels use, by tile number. The compiler's own intrinsics do not say
// that a load reads memory, so a store before it may come too late; these do.
//
// A source of AMX kernels (*_amx_cpu.cpp) sets the target itself, behind its includes. These
// instructions need none: the assembler knows them all.

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

template <int tile>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
/// Rows `stride` bytes apart.
template <int tile>
inline void load(const void* from, std::int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void store(void* to, std::int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}
/// sum[16, 16] += a[16, 32] b[32, 16]; b's rows lie in pairs, [16][16][2].
template <int sum, int a, int b>
inline void dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}

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
  const std::uint16_t* const lower = a + kTileRows * lda;
  float* const c_lower = c + kTileRows * ldc;
  if (into == Into::store) {
    zero<0>();
    zero<1>();
    zero<2>();
    zero<3>();
  } else {
    load<0>(c, ldc * 4);
    load<1>(c + kTileColumns, ldc * 4);
    load<2>(c_lower, ldc * 4);
    load<3>(c_lower + kTileColumns, ldc * 4);
  }
  for (std::int64_t k = 0; k < depth; k += kTileDepth) {
    load<4>(a + k, lda * 2);
    load<6>(left + k * kTileColumns, 64);
    load<7>(right + k * kTileColumns, 64);
    load<5>(lower + k, lda * 2);
    dot<0, 4, 6>();
    dot<1, 4, 7>();
    dot<2, 5, 6>();
    dot<3, 5, 7>();
    between();
  }
  store<0>(c, ldc * 4);
  store<1>(c + kTileColumns, ldc * 4);
  store<2>(c_lower, ldc * 4);
  store<3>(c_lower + kTileColumns, ldc * 4);
}

}  // namespace longhaul::attention::amx
