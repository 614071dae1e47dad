#include "runtime/peak.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace longhaul::runtime {
namespace {

TEST(Peak, SpeedIsThatOfAVectorUnit) {
  const double one = measure_fma_flops(1, 0.1);
  // 1 GHz x one 8-wide FMA is 16 GF/s; 6 GHz x two 16-wide ones 384.
  EXPECT_GT(one, 16e9);
  EXPECT_LT(one, 400e9);
  // CPU clocks: several threads on a busy machine still run at about one thread's rate each.
  const PeakRate both = measure_peak(2, 0.1);
  EXPECT_EQ(both.threads, 2);
  EXPECT_GT(both.all_threads_flops, 0.8 * both.one_thread_flops);
  EXPECT_LT(both.all_threads_flops, 4 * both.one_thread_flops);
  EXPECT_THROW(measure_fma_flops(0, 0.1), Error);
}

}  // namespace
}  // namespace longhaul::runtime
