// AMX instructions, emulated or real, against results by hand; and the emulator against AMX where
// there is some.
#include "tests/support/amx_emulator.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "attention/amx_tile_cpu.h"
#include "runtime/dtype.h"

namespace longhaul::test {
namespace {

namespace amx = attention::amx;

template <int tile>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
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

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct alignas(64) Bytes {
  std::byte at[16 * 64] = {};
  bool operator==(const Bytes& other) const { return std::memcmp(at, other.at, sizeof at) == 0; }
};
struct alignas(64) Floats {
  float at[16][16] = {};
};
struct alignas(64) Halves {
  runtime::BFloat16 at[16][32] = {};  // of B: [pair][column * 2 + half]
};

std::vector<std::byte> ramp(std::size_t bytes) {
  std::vector<std::byte> made(bytes);
  for (std::size_t i = 0; i < bytes; ++i) made[i] = static_cast<std::byte>(i * 37 % 251 + 1);
  return made;
}

/// A configuration of palette 1 with the first tiles of these shapes.
struct Shape {
  std::uint8_t rows;
  std::uint16_t row_bytes;
};
std::vector<std::byte> configuration(const std::vector<Shape>& shapes) {
  std::vector<std::byte> made(64);
  made[0] = std::byte{1};
  for (std::size_t tile = 0; tile < shapes.size(); ++tile) {
    std::memcpy(made.data() + 16 + 2 * tile, &shapes[tile].row_bytes, 2);
    std::memcpy(made.data() + 48 + tile, &shapes[tile].rows, 1);
  }
  return made;
}
void configure(const std::vector<std::byte>& config) {
  asm volatile("ldtilecfg (%0)" ::"r"(config.data()) : "memory");
}

class Amx : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = no_amx_reason(); !reason.empty()) GTEST_SKIP() << reason;
    level_.emplace();
  }
  std::optional<AmxLevel> level_;
};

TEST_F(Amx, LoadsAndStoresRowsByStride) {
  const amx::Tiles tiles;
  const auto from = ramp(16 * 200);
  for (const std::int64_t stride : {64, 65, 200, 0}) {
    std::vector<std::byte> to(16 * 80, std::byte{0xee});
    load<3>(from.data(), stride);
    store<3>(to.data(), 80);
    for (std::int64_t row = 0; row < 16; ++row) {
      for (std::int64_t i = 0; i < 80; ++i) {
        ASSERT_EQ(to[static_cast<std::size_t>(row * 80 + i)],
                  i < 64 ? from[static_cast<std::size_t>(row * stride + i)] : std::byte{0xee});
      }
    }
  }
  Bytes backwards, expected;
  for (std::size_t row = 0; row < 16; ++row)
    std::memcpy(expected.at + row * 64, from.data() + (15 - row) * 64, 64);
  load<0>(from.data() + 15 * 64, -64);
  store<0>(backwards.at, 64);
  EXPECT_TRUE(backwards == expected);
}

TEST_F(Amx, EveryFormOfAnAddress) {
  const amx::Tiles tiles;
  const auto from = ramp(4096);
  const auto expect = [&](std::size_t begin, std::size_t stride) {
    Bytes got, expected;
    asm volatile("tilestored %%tmm1, (%0,%1,8)" ::"r"(got.at), "r"(8L) : "memory");
    for (std::size_t row = 0; row < 16; ++row)
      std::memcpy(expected.at + row * 64, from.data() + begin + row * stride, 64);
    EXPECT_TRUE(got == expected) << begin << ", " << stride;
  };
  const std::byte* const base = from.data();
  asm volatile("tileloadd (%0,%1,4), %%tmm1" ::"r"(base), "r"(20L));
  expect(0, 80);
  asm volatile("tileloaddt1 64(%0,%1,2), %%tmm1" ::"r"(base), "r"(40L));
  expect(64, 80);
  asm volatile("tileloadd -32(%0,%1,1), %%tmm1" ::"r"(base + 96), "r"(80L));
  expect(64, 80);
  asm volatile("tileloadd 1024(%0,%1,1), %%tmm1" ::"r"(base), "r"(96L));
  expect(1024, 96);
  asm volatile("tileloadd (%0), %%tmm1" ::"r"(base + 128));  // no index: every row is the same
  expect(128, 0);
  // Each register as base, then as index.
#define LONGHAUL_FORM(register_a, register_b)                                                   \
  asm volatile("mov %0, %%" register_a "; mov %1, %%" register_b "; tileloadd 64(%%" register_a \
               ",%%" register_b ",2), %%tmm1" ::"m"(base),                                      \
               "i"(40)                                                                          \
               : register_a, register_b);                                                       \
  expect(64, 80)
  LONGHAUL_FORM("rax", "rcx");
  LONGHAUL_FORM("rcx", "rdx");
  LONGHAUL_FORM("rdx", "rsi");
  LONGHAUL_FORM("rsi", "rdi");
  LONGHAUL_FORM("rdi", "r8");
  LONGHAUL_FORM("r8", "r9");
  LONGHAUL_FORM("r9", "r10");
  LONGHAUL_FORM("r10", "r11");
  LONGHAUL_FORM("r11", "r12");
  LONGHAUL_FORM("r12", "r13");
  LONGHAUL_FORM("r13", "r14");
  LONGHAUL_FORM("r14", "r15");
  LONGHAUL_FORM("r15", "rax");
#undef LONGHAUL_FORM
}

TEST_F(Amx, ShapesOfAConfiguration) {
  configure(configuration({{3, 20}, {16, 64}}));
  const auto from = ramp(16 * 64);
  std::vector<std::byte> to(16 * 64, std::byte{0xee});
  load<0>(from.data(), 64);
  store<0>(to.data(), 64);
  for (std::size_t i = 0; i < to.size(); ++i)
    ASSERT_EQ(to[i], i / 64 < 3 && i % 64 < 20 ? from[i] : std::byte{0xee}) << i;
  // A new configuration zeroes what tiles held; so does TILEZERO.
  load<1>(from.data(), 64);
  configure(configuration({{16, 64}, {16, 64}}));
  Bytes got, none;
  std::memset(got.at, 1, sizeof got.at);
  store<1>(got.at, 64);
  EXPECT_TRUE(got == none);
  load<1>(from.data(), 64);
  zero<1>();
  std::memset(got.at, 1, sizeof got.at);
  store<1>(got.at, 64);
  EXPECT_TRUE(got == none);
  asm volatile("tilerelease");
}

TEST_F(Amx, ThreadsHaveTilesOfTheirOwn) {
  const amx::Tiles tiles;
  const auto from = ramp(16 * 64);
  Bytes got, expected;
  std::memcpy(expected.at, from.data(), sizeof expected.at);
  load<2>(from.data(), 64);
  std::thread([] {
    const amx::Tiles own;
    zero<2>();
  }).join();
  store<2>(got.at, 64);
  EXPECT_TRUE(got == expected);
}

/// sum + a b of whole tiles.
Floats dot(const Floats& sum, const Halves& a, const Halves& b) {
  Floats result;
  const amx::Tiles tiles;
  load<7>(sum.at, 64);
  load<4>(a.at, 64);
  load<6>(b.at, 64);
  dot<7, 4, 6>();
  store<7>(result.at, 64);
  return result;
}

TEST_F(Amx, DotMultipliesMatrices) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> integer(-9, 9);
  Floats sum;
  Halves a, b;
  for (auto& row : sum.at) {
    for (float& x : row) x = static_cast<float>(integer(random));
  }
  for (auto* tile : {&a, &b}) {
    for (auto& row : tile->at) {
      for (auto& x : row) x = runtime::BFloat16(static_cast<float>(integer(random)));
    }
  }
  const Floats got = dot(sum, a, b);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float expected = sum.at[m][n];
      for (int k = 0; k < 32; ++k) {
        expected += static_cast<float>(a.at[m][k]) * static_cast<float>(b.at[k / 2][2 * n + k % 2]);
      }
      ASSERT_EQ(got.at[m][n], expected) << m << ", " << n;
    }
  }
}

/// The first row of a times b, whose first column holds `y`.
float chain(float sum, const std::vector<float>& x, const std::vector<float>& y) {
  Floats start;
  Halves a, b;
  start.at[0][0] = sum;
  for (std::size_t k = 0; k < x.size(); ++k) {
    a.at[0][k] = runtime::BFloat16(x[k]);
    b.at[k / 2][k % 2] = runtime::BFloat16(y[k]);
  }
  return dot(start, a, b).at[0][0];
}

TEST_F(Amx, DotRoundsAsTheManualSays) {
  const float large = 4096;  // squared 2^24, whose neighbours are 2 apart
  // Even elements on their own: 2^24 + 1 is rounded to even, twice.
  EXPECT_EQ(chain(0, {large, 0, 1, 0, 1}, {large, 0, 1, 0, 1}), 0x1p24f);
  // Odd ones beside them: 2^24 + (1 + 1).
  EXPECT_EQ(chain(0, {large, 1, 0, 1}, {large, 1, 0, 1}), 0x1p24f + 2);
  // 2^24 + 3 is a tie too, and goes up to 2^24 + 4.
  EXPECT_EQ(chain(0, {large, 0, 3}, {large, 0, 1}), 0x1p24f + 4);
  // Both chains meet before they are added to the sum.
  EXPECT_EQ(chain(1, {large, large}, {large, -large}), 1);
  EXPECT_EQ(chain(1, {large, 0, large}, {large, 0, -large}), 1);
  // Subnormal operands and results are zeros.
  EXPECT_EQ(chain(0, {0x1p-130f}, {0x1p60f}), 0);
  EXPECT_EQ(chain(0, {0x1p-70f}, {0x1p-70f}), 0);
  EXPECT_EQ(chain(0x1p-130f, {1}, {0}), 0);
  EXPECT_EQ(chain(0, {0x1p-63f}, {0x1p-63f}), 0x1p-126f);
  // Products beyond float's range, and what is no number.
  EXPECT_EQ(chain(0, {0x1p100f}, {0x1p100f}), kInfinity);
  EXPECT_EQ(chain(3, {kInfinity}, {-1}), -kInfinity);
  EXPECT_TRUE(std::isnan(chain(0, {kInfinity}, {0})));
  EXPECT_TRUE(std::isnan(chain(0, {kInfinity, kInfinity}, {1, -1})));
  EXPECT_TRUE(std::isnan(chain(kNaN, {1}, {1})));
}

/// On a machine with AMX this compares the emulator with it.
TEST_F(Amx, AgreesWithTheEmulatorBitForBit) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const auto full = configuration(std::vector<Shape>(8, {16, 64}));
  for (int round = 0; round < 20; ++round) {
    Floats sum;
    Halves a, b;
    const float spread = round % 4 == 0 ? 0x1p-66f : 1;
    for (auto& row : sum.at) {
      for (float& x : row) x = normal(random) * (round % 2 == 0 ? 1 : 0x1p-120f);
    }
    for (auto* tile : {&a, &b}) {
      for (auto& row : tile->at) {
        for (auto& x : row) x = runtime::BFloat16(normal(random) * spread);
      }
    }
    AmxTiles emulated;
    const auto bytes = [](const auto& tile) { return reinterpret_cast<const std::byte*>(tile.at); };
    Floats expected;
    ASSERT_EQ(emulated.configure(full.data()), nullptr);
    ASSERT_EQ(emulated.load(0, bytes(sum), 64), nullptr);
    ASSERT_EQ(emulated.load(1, bytes(a), 64), nullptr);
    ASSERT_EQ(emulated.load(2, bytes(b), 64), nullptr);
    ASSERT_EQ(emulated.dot(0, 1, 2), nullptr);
    ASSERT_EQ(emulated.store(0, reinterpret_cast<std::byte*>(expected.at), 64), nullptr);
    const Floats got = dot(sum, a, b);
    ASSERT_EQ(std::memcmp(got.at, expected.at, sizeof got.at), 0) << round;
  }
}

TEST(AmxTiles, RefusesWhatTheManualRefuses) {
  AmxTiles tiles;
  std::byte bytes[1024] = {};
  EXPECT_STREQ(tiles.zero(0), "tiles are not configured");
  EXPECT_STREQ(tiles.load(0, bytes, 64), "tiles are not configured");
  EXPECT_STREQ(tiles.store(0, bytes, 64), "tiles are not configured");
  EXPECT_STREQ(tiles.dot(0, 1, 2), "tiles are not configured");
  ASSERT_EQ(tiles.configure(configuration({{16, 64}, {16, 64}, {16, 64}, {8, 64}, {8, 6}}).data()),
            nullptr);
  EXPECT_EQ(tiles.dot(0, 1, 2), nullptr);
  EXPECT_STREQ(tiles.zero(5), "a tile outside the configuration");
  EXPECT_STREQ(tiles.dot(0, 1, 5), "a tile outside the configuration");
  EXPECT_STREQ(tiles.dot(0, 1, 1), "TDPBF16PS of a tile and itself");
  EXPECT_STREQ(tiles.dot(0, 1, 3), "TDPBF16PS of tiles whose shapes do not go together");
  EXPECT_STREQ(tiles.dot(0, 3, 1), "TDPBF16PS of tiles whose shapes do not go together");
  EXPECT_STREQ(tiles.dot(3, 4, 1), "TDPBF16PS of rows that are no multiple of 4 bytes");
  const auto refusal = [&](std::size_t at, int value) {
    auto config = configuration({{16, 64}});
    config[at] = static_cast<std::byte>(value);
    const char* const why = tiles.configure(config.data());
    return std::string(why == nullptr ? "" : why);
  };
  EXPECT_EQ(refusal(0, 2), "the palette of a configuration is neither 0 nor 1");
  EXPECT_EQ(refusal(1, 1), "a configuration that starts in the middle of a tile");
  EXPECT_EQ(refusal(9, 1), "a reserved byte of a configuration is not 0");
  EXPECT_EQ(refusal(16, 65), "a configuration of rows of more than 64 bytes");
  EXPECT_EQ(refusal(48, 17), "a configuration of more than 16 rows");
  EXPECT_EQ(refusal(48, 0), "a configuration of a tile with half a shape");
  EXPECT_EQ(refusal(56, 16), "a configuration of a tile beyond the eighth");
  EXPECT_EQ(tiles.zero(0), nullptr);  // a refused configuration changes nothing
  EXPECT_EQ(refusal(0, 0), "");       // palette 0 releases the tiles
  EXPECT_STREQ(tiles.zero(0), "tiles are not configured");
}

TEST(AmxDeathTest, ATileOutsideItsConfigurationStopsTheProcess) {
  if (const std::string reason = no_amx_reason(); !reason.empty()) GTEST_SKIP() << reason;
  if (runtime::best_cpu_level() == runtime::CpuLevel::amx)
    GTEST_SKIP() << "this machine has AMX, which raises a signal";
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto outside = [] {
    const AmxLevel level;
    configure(configuration({{16, 64}}));
    zero<1>();
  };
  EXPECT_DEATH(outside(), "AMX emulator: a tile outside the configuration: c4 e2 7b 49 c8");
  const auto illegal = [] {
    const AmxLevel level;
    asm volatile("ud2");
  };
  EXPECT_EXIT(illegal(), testing::KilledBySignal(SIGILL), "");
}

}  // namespace
}  // namespace longhaul::test
