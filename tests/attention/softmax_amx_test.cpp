// The exponential of the kernels on tiles.
#include "attention/softmax_amx_cpu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16")
namespace longhaul::attention {
namespace {

float power_of_two(float z, bool seen = true) {
  alignas(64) float values[16];
  _mm512_store_ps(values, amx::exp2_16(seen ? __mmask16{0xffff} : __mmask16{0}, _mm512_set1_ps(z)));
  return values[7];
}

}  // namespace
}  // namespace longhaul::attention
#pragma GCC pop_options

namespace longhaul::attention {
namespace {

TEST(SoftmaxAmx, PowersOfTwo) {
  double worst = 0;
  for (float z = -120; z < 9; z += 0.00137f) {
    const double exact = std::exp2(static_cast<double>(z));
    worst = std::max(worst, std::abs(static_cast<double>(power_of_two(z)) - exact) / exact);
  }
  EXPECT_LE(worst, 1.04e-4);
  // A score and its LSE may differ by a rounding.
  for (const float z : {0.0f, -0.0f, 1e-30f, -1e-30f, -1e-20f})
    EXPECT_NEAR(power_of_two(z), 1, 1.2e-7);
  for (int z = -126; z < 9; ++z)
    EXPECT_EQ(power_of_two(static_cast<float>(z)), std::exp2(static_cast<float>(z)));
}

TEST(SoftmaxAmx, Ends) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float z : {-kInfinity, -3e38f, -1e10f, -200.0f}) EXPECT_EQ(power_of_two(z), 0);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(power_of_two(nan)));
  for (const float z : {nan, 3.0f, kInfinity}) EXPECT_EQ(power_of_two(z, false), 0);
}

}  // namespace
}  // namespace longhaul::attention
