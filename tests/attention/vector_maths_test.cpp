// The functions that the CPU kernels compute of scores, for each instruction set.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/attention/vector_maths_test.cpp"
#include "runtime/simd_cpu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "attention/softmax_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::attention::HWY_NAMESPACE {

/// values[i], slopes[i] of x[i]; whole vectors of 16.
void tanh_of(const std::vector<float>& x, std::vector<float>& values, std::vector<float>& slopes) {
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const WithSlope f = hyperbolic_tangent(hn::LoadU(kFloats, x.data() + i));
    hn::StoreU(f.value, kFloats, values.data() + i);
    hn::StoreU(f.slope, kFloats, slopes.data() + i);
  }
}
void sigmoid_of(const std::vector<float>& x, std::vector<float>& values,
                std::vector<float>& slopes) {
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const WithSlope f = sigmoid(hn::LoadU(kFloats, x.data() + i));
    hn::StoreU(f.value, kFloats, values.data() + i);
    hn::StoreU(f.slope, kFloats, slopes.data() + i);
  }
}
/// e^x in both.
void exponential_of(const std::vector<float>& x, std::vector<float>& values,
                    std::vector<float>& slopes) {
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const Vector e = exponential(hn::LoadU(kFloats, x.data() + i));
    hn::StoreU(e, kFloats, values.data() + i);
    hn::StoreU(e, kFloats, slopes.data() + i);
  }
}

}  // namespace longhaul::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::attention {

HWY_EXPORT(tanh_of);
HWY_EXPORT(sigmoid_of);
HWY_EXPORT(exponential_of);

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Largest relative errors; of normal floats: below that, exponentials and slopes are 0.
class Worst {
 public:
  void see(float got, double exact) {
    if (std::abs(exact) > 1e-37) error_ = std::max(error_, std::abs(got - exact) / std::abs(exact));
  }
  double error() const { return error_; }

 private:
  double error_ = 0;
};

/// From 1e-30 to 100 in both signs, evenly in the exponent, and evenly up to 100.
std::vector<float> many_numbers() {
  std::vector<float> x;
  for (int i = -400'000; i <= 400'000; i += 7) {
    const double spread = std::pow(10.0, -30 + 32 * std::abs(i) / 4e5);
    x.push_back(static_cast<float>(std::copysign(spread, i)));
    x.push_back(static_cast<float>(i / 4e3));
  }
  x.resize(x.size() / 16 * 16);
  return x;
}

TEST(VectorMaths, FunctionsAreWithinAFewUlp) {
  const std::vector<float> x = many_numbers();
  std::vector<float> value(x.size()), slope(x.size());
  Worst tanh, tanh_slope, sigmoid, sigmoid_slope, exponential;
  LONGHAUL_DISPATCH(tanh_of)(x, value, slope);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double wide = x[i];
    tanh.see(value[i], std::tanh(wide));
    tanh_slope.see(slope[i], 1 / (std::cosh(wide) * std::cosh(wide)));
  }
  LONGHAUL_DISPATCH(sigmoid_of)(x, value, slope);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double wide = x[i];
    sigmoid.see(value[i], 1 / (1 + std::exp(-wide)));
    sigmoid_slope.see(slope[i], 1 / ((1 + std::exp(-wide)) * (1 + std::exp(wide))));
  }
  LONGHAUL_DISPATCH(exponential_of)(x, value, slope);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] <= 88) exponential.see(value[i], std::exp(static_cast<double>(x[i])));
  }
  for (const Worst& worst : {tanh, tanh_slope, sigmoid, sigmoid_slope, exponential})
    EXPECT_LE(worst.error(), 4 * 1.2e-7);
}

TEST(VectorMaths, Ends) {
  const std::vector<float> x = {0,    -0.0f,  kInfinity, -kInfinity, kNaN, 3e38f, -3e38f, 1e-42f,
                                0.5f, -200.f, -kNaN,     0,          0,    0,     0,      0};
  std::vector<float> value(x.size()), slope(x.size());
  LONGHAUL_DISPATCH(tanh_of)(x, value, slope);
  EXPECT_EQ(std::vector(value.begin(), value.begin() + 4), (std::vector<float>{0, 0, 1, -1}));
  EXPECT_TRUE(std::isnan(value[4]) && std::isnan(slope[4]) && std::isnan(value[10]));
  EXPECT_EQ(std::vector(value.begin() + 5, value.begin() + 8), (std::vector<float>{1, -1, 1e-42f}));
  EXPECT_EQ(slope[0], 1);
  for (const std::size_t i : {2, 3, 5, 6}) EXPECT_EQ(slope[i], 0);
  LONGHAUL_DISPATCH(sigmoid_of)(x, value, slope);
  EXPECT_EQ(std::vector(value.begin(), value.begin() + 4), (std::vector<float>{0.5f, 0.5f, 1, 0}));
  EXPECT_TRUE(std::isnan(value[4]) && std::isnan(slope[4]) && std::isnan(value[10]));
  EXPECT_EQ(std::vector(value.begin() + 5, value.begin() + 8), (std::vector<float>{1, 0, 0.5f}));
  for (const std::size_t i : {2, 3, 5, 6}) EXPECT_EQ(slope[i], 0);
  LONGHAUL_DISPATCH(exponential_of)(x, value, slope);
  EXPECT_EQ(value[0], 1);
  EXPECT_EQ(value[1], 1);
  for (const std::size_t i : {3, 6, 9}) EXPECT_EQ(value[i], 0);
  EXPECT_TRUE(std::isnan(value[4]) && std::isnan(value[10]));
}

}  // namespace
}  // namespace longhaul::attention
#endif  // HWY_ONCE
