#include "runtime/peak.h"

#include <gtest/gtest.h>

#include "runtime/bandwidth.h"
#include "runtime/cpu_level.h"
#include "runtime/error.h"
#include "runtime/wake.h"

namespace longhaul::runtime {
namespace {

/// The level in use until the test is over.
class Level {
 public:
  explicit Level(CpuLevel level) : before_(cpu_level()) { set_cpu_level(level); }
  ~Level() { set_cpu_level(before_); }

 private:
  const CpuLevel before_;
};

void expect_ordered(const Rate& rate) {
  EXPECT_GE(rate.samples, 5);
  EXPECT_GT(rate.lower, 0);
  EXPECT_GE(rate.median, rate.lower);
  EXPECT_GE(rate.upper, rate.median);
}

// Flops a cycle and thread: two units of so many lanes; 16 cycles a product of tiles.
double flops_a_cycle(Unit unit) {
  switch (unit) {
    case Unit::fma_avx2:
      return 2 * 2 * 8;
    case Unit::fma_avx512:
      return 2 * 2 * 16;
    case Unit::dot_avx512:
      return 2 * 2 * 32;
    default:
      return 2.0 * 16 * 16 * 32 / 16;
  }
}

TEST(Peak, EveryUnitOfTheMachineIsAsFastAsSuchUnitsAre) {
  for (const Unit unit : kUnits) {
    if (!has(unit)) {
      EXPECT_THROW(measure_peak(unit, 1, 0.01), Error) << name(unit);
      continue;
    }
    const Rate one = measure_peak(unit, 1, 0.05);
    expect_ordered(one);
    // One unit at 1 GHz, or two at 6; tiles from memory, or throttled ones, at a quarter of that.
    EXPECT_GT(one.median, 1e9 * flops_a_cycle(unit) / 8) << name(unit);
    EXPECT_LT(one.median, 6.2e9 * flops_a_cycle(unit)) << name(unit);
    EXPECT_LT(one.cores, 1.1);
  }
}

TEST(Peak, ThreadsTogetherDoWhatEachDoes) {
  // CPU clocks: several threads on a busy machine still run at about one thread's rate each.
  const double one = measure_fma_flops(1, 0.1), both = measure_fma_flops(2, 0.1);
  EXPECT_GT(both, 0.8 * one);
  EXPECT_LT(both, 4 * one);
  EXPECT_THROW(measure_fma_flops(0, 0.1), Error);
}

TEST(Peak, KernelsAreComparedWithTheUnitOfTheLevelInUse) {
  const auto units = [](CpuLevel at) {
    const Level level(at);
    return std::pair(kernel_unit(DType::float32), kernel_unit(DType::bfloat16));
  };
  EXPECT_EQ(units(CpuLevel::avx2), std::pair(Unit::fma_avx2, Unit::fma_avx2));
  EXPECT_EQ(units(CpuLevel::avx512), std::pair(Unit::fma_avx512, Unit::fma_avx512));
  EXPECT_EQ(units(CpuLevel::amx), std::pair(Unit::fma_avx512, Unit::tiles));
  const Level level(CpuLevel::avx2);
  EXPECT_EQ(product_unit(DType::bfloat16), Unit::fma_avx2);
  if (has(Unit::fma_avx512)) {
    const double narrow = measure_fma_flops(1, 0.05);
    EXPECT_LT(narrow, 6.2e9 * flops_a_cycle(Unit::fma_avx2));
    EXPECT_NEAR(narrow / measure_peak(Unit::fma_avx2, 1, 0.05).median, 1, 0.3);
  }
}

TEST(Bandwidth, MemoryIsSlowerThanTheFirstCache) {
  // The first cache gives no core more than two lines a cycle.
  constexpr double kMost = 2 * 64 * 6e9;
  for (const int threads : {1, 2}) {
    const Rate triad = measure_triad(threads, 0.02),
               copied = measure_memcpy(1 << 24, threads, 0.02);
    for (const Rate& rate : {triad, copied}) {
      expect_ordered(rate);
      EXPECT_GT(rate.median, 1e8);
      EXPECT_LT(rate.median, threads * kMost);
    }
  }
  EXPECT_GE(uncached_bytes(), std::int64_t{64} << 20);
}

TEST(Wake, EveryRepetitionIsTimed) {
  const WakeTimes times = measure_wake(2, 1e-3, 5);
  ASSERT_EQ(times.region.size(), 5u);
  ASSERT_EQ(times.task.size(), 5u);
  for (const double seconds : times.region) EXPECT_GT(seconds, 0);
  for (const double seconds : times.task) EXPECT_GT(seconds, 0);
}

}  // namespace
}  // namespace longhaul::runtime
