// What surrounds a recurrence: l2 norm, gated norm and feature maps against definitions in double;
// backwards against central differences of those definitions.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/ops/feature_map.h"
#include "runtime/ops/gated_norm.h"
#include "runtime/ops/l2_norm.h"
#include "tests/support/differences.h"
#include "tests/support/expect_error.h"
#include "tests/support/host_tensors.h"

namespace longhaul::runtime::ops {
namespace {

using test::make_tensor;
using test::numeric_gradient;
using test::random_values;
using test::read;
using test::read_bytes;
using test::relative_error;
using Values = std::vector<double>;

constexpr double kFloatBound = 1e-6;
constexpr double kBFloat16Bound = 0x1p-8;  // one rounding to 8 bits
constexpr double kEps = 1e-6;

double bound(DType dtype) { return dtype == DType::bfloat16 ? kBFloat16Bound : kFloatBound; }
std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// Values in +-4: gates that saturate and gates that do not.
Values spread_values(std::int64_t count, unsigned seed, DType dtype) {
  Values values = random_values(count, seed, dtype == DType::bfloat16);
  for (double& value : values) value *= 4;
  return values;
}

/// [n,H,D] within memory [n,H+2,D+3]: strided in rows and heads.
struct Strided {
  Tensor memory;
  TensorView view;
};
Strided strided(const Values& values, std::int64_t rows, std::int64_t heads, std::int64_t dim,
                DType dtype, const Stream& stream) {
  Strided result;
  Values memory(at(rows * (heads + 2) * (dim + 3)), 77);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t i = 0; i < dim; ++i)
        memory[at((row * (heads + 2) + head + 1) * (dim + 3) + i + 2)] =
            values[at((row * heads + head) * dim + i)];
    }
  }
  result.memory = make_tensor(memory, {rows, heads + 2, dim + 3}, dtype, stream);
  result.view = result.memory.view().slice(1, 1, heads + 1).slice(2, 2, dim + 2);
  return result;
}
/// Its values; what surrounds them is as it was.
Values read_strided(const Strided& from, const Stream& stream) {
  const Values memory = read(from.memory, stream);
  const std::int64_t rows = from.memory.size(0), heads = from.memory.size(1),
                     dim = from.memory.size(2);
  Values values;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t i = 0; i < dim; ++i) {
        const double value = memory[at((row * heads + head) * dim + i)];
        const bool inside = head >= 1 && head < heads - 1 && i >= 2 && i < dim - 1;
        if (inside)
          values.push_back(value);
        else
          EXPECT_EQ(value, 77) << "outside of the view, row " << row;
      }
    }
  }
  return values;
}

class Recurrent : public ::testing::TestWithParam<std::tuple<std::int64_t, std::int64_t, DType>> {
 protected:
  std::int64_t rows() const { return std::get<0>(GetParam()); }
  std::int64_t dim() const { return std::get<1>(GetParam()); }
  DType dtype() const { return std::get<2>(GetParam()); }
  bool few() const { return rows() * dim() <= 100; }  // differences cost their square
  const Stream one_ = Stream::cpu("one", 1), two_ = Stream::cpu("two", 2);
};
INSTANTIATE_TEST_SUITE_P(Ops, Recurrent,
                         ::testing::Combine(::testing::Values(0, 1, 7, 127),
                                            ::testing::Values(1, 7, 127),
                                            ::testing::Values(DType::float32, DType::bfloat16)));

Values l2_reference(const Values& x, std::int64_t dim) {
  Values y;
  for (std::size_t head = 0; head < x.size(); head += at(dim)) {
    double sum = 0;
    for (std::size_t i = 0; i < at(dim); ++i) sum += x[head + i] * x[head + i];
    for (std::size_t i = 0; i < at(dim); ++i) y.push_back(x[head + i] / std::sqrt(sum + kEps));
  }
  return y;
}

TEST_P(Recurrent, L2NormHasLengthOne) {
  const std::int64_t heads = 3;
  const Values x = spread_values(rows() * heads * dim(), 1, dtype()),
               nothing(x.size(), std::numeric_limits<double>::quiet_NaN());
  std::vector<std::byte> bytes[2];
  for (const Stream& stream : {one_, two_}) {
    const Strided in = strided(x, rows(), heads, dim(), dtype(), stream),
                  y = strided(nothing, rows(), heads, dim(), dtype(), stream);
    l2_norm(in.view, kEps, y.view, stream);
    EXPECT_LE(relative_error(read_strided(y, stream), l2_reference(x, dim())), bound(dtype()));
    bytes[stream.threads() - 1] = read_bytes(y.memory, stream);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST_P(Recurrent, L2NormBackward) {
  const std::int64_t heads = 3;
  Values x = spread_values(rows() * heads * dim(), 1, dtype());
  const Values dy = random_values(rows() * heads * dim(), 2);
  Values expected;
  if (few())
    expected = numeric_gradient([&](const Values& v) { return l2_reference(v, dim()); }, x, dy);
  std::vector<std::byte> bytes[2];
  for (const Stream& stream : {one_, two_}) {
    const Strided in = strided(x, rows(), heads, dim(), dtype(), stream),
                  slopes = strided(dy, rows(), heads, dim(), DType::float32, stream),
                  dx = strided(x, rows(), heads, dim(), dtype(), stream);
    l2_norm_backward(in.view, slopes.view, kEps, dx.view, stream);
    // Of a single element only the part by eps is left, a difference of nearly equal numbers.
    if (few() && dim() > 1) {
      EXPECT_LE(relative_error(read_strided(dx, stream), expected), bound(dtype()));
    }
    bytes[stream.threads() - 1] = read_bytes(dx.memory, stream);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST(L2Norm, OfZerosIsZeroAndItsSlopeIsThatOfEps) {
  const Stream stream = Stream::cpu("ops", 1);
  const Tensor x = make_tensor({0, 0, 0}, {1, 1, 3}, DType::float32, stream),
               dy = make_tensor({1, -2, 0.5}, {1, 1, 3}, DType::float32, stream),
               y({1, 1, 3}, DType::float32, stream), dx({1, 1, 3}, DType::float32, stream);
  l2_norm(x, kEps, y, stream);
  l2_norm_backward(x, dy, kEps, dx, stream);
  EXPECT_EQ(read(y, stream), (Values{0, 0, 0}));
  EXPECT_LE(relative_error(read(dx, stream), {1e3, -2e3, 5e2}), kFloatBound);
}

double mapped(FeatureMap map, double x) {
  switch (map) {
    case FeatureMap::identity:
      return x;
    case FeatureMap::relu:
      return x > 0 ? x : 0;
    case FeatureMap::silu:
      return x / (1 + std::exp(-x));
    case FeatureMap::elu1:
      return x > 0 ? x + 1 : std::exp(x);
  }
  return 0;
}
Values map_reference(FeatureMap map, const Values& x) {
  Values y;
  for (const double value : x) y.push_back(mapped(map, value));
  return y;
}

TEST_P(Recurrent, FeatureMaps) {
  const std::int64_t heads = 3;
  Values x = spread_values(rows() * heads * dim(), 1, dtype());
  for (double& value : x)  // differences need a map that is smooth where they look
    if (std::abs(value) < 0.01) value = 0.5;
  const Values dy = random_values(rows() * heads * dim(), 2),
               nothing(x.size(), std::numeric_limits<double>::quiet_NaN());
  for (const char* const name : feature_map_names()) {
    SCOPED_TRACE(name);
    const FeatureMap map = feature_map_of(name);
    Values slopes;
    if (few())
      slopes = numeric_gradient([&](const Values& v) { return map_reference(map, v); }, x, dy);
    std::vector<std::byte> bytes[2][2];
    for (const Stream& stream : {one_, two_}) {
      const Strided in = strided(x, rows(), heads, dim(), dtype(), stream),
                    tdy = strided(dy, rows(), heads, dim(), DType::float32, stream),
                    y = strided(nothing, rows(), heads, dim(), dtype(), stream),
                    dx = strided(nothing, rows(), heads, dim(), dtype(), stream);
      feature_map(map, in.view, y.view, stream);
      feature_map_backward(map, in.view, tdy.view, dx.view, stream);
      EXPECT_LE(relative_error(read_strided(y, stream), map_reference(map, x)), bound(dtype()));
      if (few()) {
        EXPECT_LE(relative_error(read_strided(dx, stream), slopes), bound(dtype()));
      }
      bytes[stream.threads() - 1][0] = read_bytes(y.memory, stream);
      bytes[stream.threads() - 1][1] = read_bytes(dx.memory, stream);
    }
    EXPECT_EQ(bytes[0][0], bytes[1][0]);
    EXPECT_EQ(bytes[0][1], bytes[1][1]);
  }
}

TEST(FeatureMaps, EndsOfTheLineAndUnknownNames) {
  const Stream stream = Stream::cpu("ops", 1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = make_tensor({-200, 0, 200, nan}, {1, 1, 4}, DType::float32, stream),
               dy = make_tensor({1, 1, 1, 1}, {1, 1, 4}, DType::float32, stream),
               y({1, 1, 4}, DType::float32, stream), dx({1, 1, 4}, DType::float32, stream);
  for (const char* const name : feature_map_names()) {
    SCOPED_TRACE(name);
    feature_map(feature_map_of(name), x, y, stream);
    feature_map_backward(feature_map_of(name), x, dy, dx, stream);
    const Values values = read(y, stream), slopes = read(dx, stream);
    for (const std::size_t i : {0u, 1u, 2u}) {
      EXPECT_NEAR(values[i], mapped(feature_map_of(name), Values{-200, 0, 200}[i]), 1e-5);
      EXPECT_TRUE(std::isfinite(slopes[i]));
    }
    EXPECT_TRUE(std::isnan(values[3]));
  }
  test::expect_error(ExitCode::config, "identity, relu, silu, elu1",
                     [] { static_cast<void>(feature_map_of("softmax")); });
}

struct NormCase {
  const char* name;
  GateActivation activation;
  bool first;
  std::int64_t group, groups, period;  ///< a row is `groups` groups, the weight `period` elements
  friend void PrintTo(const NormCase& c, std::ostream* out) { *out << c.name; }
};
const NormCase kNorms[] = {
    {"GatedDeltaNet", GateActivation::silu, false, 7, 3, 7},
    {"Kda", GateActivation::sigmoid, false, 64, 2, 64},
    {"Lightning", GateActivation::sigmoid, false, 130, 1, 130},
    {"Mamba2", GateActivation::silu, true, 5, 4, 20},
    {"Mamba2OneGroup", GateActivation::silu, true, 127, 1, 127},
    {"SigmoidFirst", GateActivation::sigmoid, true, 3, 4, 6},
    {"Ungated", GateActivation::none, false, 9, 2, 9},
    {"One", GateActivation::silu, false, 1, 1, 1},
};

double gate_of(GateActivation activation, double z) {
  if (activation == GateActivation::none) return 1;
  const double sigmoid = 1 / (1 + std::exp(-z));
  return activation == GateActivation::silu ? z * sigmoid : sigmoid;
}
Values norm_reference(const NormCase& c, const Values& x, const Values& gate,
                      const Values& weight) {
  Values y;
  for (std::size_t begin = 0; begin < x.size(); begin += at(c.group)) {
    const auto h = [&](std::size_t i) {
      return c.first ? x[i] * gate_of(c.activation, gate[i]) : x[i];
    };
    double sum = 0;
    for (std::size_t i = begin; i < begin + at(c.group); ++i) sum += h(i) * h(i);
    const double inverse = 1 / std::sqrt(sum / static_cast<double>(c.group) + kEps);
    for (std::size_t i = begin; i < begin + at(c.group); ++i) {
      const double normed = h(i) * inverse * weight[i % at(c.period)];
      y.push_back(c.first ? normed : normed * gate_of(c.activation, gate[i]));
    }
  }
  return y;
}

class GatedNorms : public ::testing::TestWithParam<std::tuple<NormCase, std::int64_t, DType>> {};
INSTANTIATE_TEST_SUITE_P(Ops, GatedNorms,
                         ::testing::Combine(::testing::ValuesIn(kNorms),
                                            ::testing::Values(0, 1, 7, 127, 500),
                                            ::testing::Values(DType::float32, DType::bfloat16)));

TEST_P(GatedNorms, ForwardAndEveryGradient) {
  const auto& [c, rows, dtype] = GetParam();
  const std::int64_t width = c.group * c.groups, count = rows * width;
  const bool gated = c.activation != GateActivation::none, few = rows <= 1;
  const Values x = random_values(count, 1), gate = spread_values(count, 2, dtype),
               weight = random_values(c.period, 3), dy = random_values(count, 4),
               dweight_start = random_values(c.period, 5);
  Values dx, dgate, dweight;
  if (few) {
    dx = numeric_gradient([&](const Values& v) { return norm_reference(c, v, gate, weight); }, x,
                          dy);
    dgate = numeric_gradient([&](const Values& v) { return norm_reference(c, x, v, weight); }, gate,
                             dy);
  }
  dweight =
      numeric_gradient([&](const Values& v) { return norm_reference(c, x, gate, v); }, weight, dy);
  for (std::size_t i = 0; i < dweight.size(); ++i) dweight[i] += dweight_start[i];
  std::vector<std::vector<std::byte>> bytes[2];
  for (const int threads : {1, 2}) {
    const Stream stream = Stream::cpu("ops", threads);
    const GatedNorm norm{c.activation, c.first, c.group, kEps};
    const Tensor tx = make_tensor(x, {rows, width}, DType::float32, stream),
                 tg = make_tensor(gate, {rows, width}, dtype, stream),
                 tw = make_tensor(weight, {c.period}, DType::float32, stream),
                 tdy = make_tensor(dy, {rows, width}, DType::float32, stream),
                 y({rows, width}, dtype, stream), again({rows, width}, dtype, stream),
                 tdx({rows, width}, dtype, stream), tdg({rows, width}, dtype, stream),
                 tdw = make_tensor(dweight_start, {c.period}, DType::float32, stream);
    const ConstTensorView gates = gated ? ConstTensorView(tg) : ConstTensorView();
    gated_norm(norm, tx, gates, tw, y, stream);
    gated_norm(norm, tx, gates, tw, again, stream);
    gated_norm_backward(norm, {tx, gates, tw, tdy}, tdx, gated ? tdg.view() : TensorView(), tdw,
                        stream);
    EXPECT_LE(relative_error(read(y, stream), norm_reference(c, x, gate, weight)), bound(dtype));
    EXPECT_EQ(read_bytes(y, stream), read_bytes(again, stream));
    EXPECT_LE(relative_error(read(tdw, stream), dweight), kFloatBound);
    // A group of one: only the part by eps is left, a difference of nearly equal numbers.
    if (few && c.group > 1) {
      EXPECT_LE(relative_error(read(tdx, stream), dx), bound(dtype));
    }
    if (few && gated && !(c.first && c.group == 1)) {
      EXPECT_LE(relative_error(read(tdg, stream), dgate), bound(dtype));
    }
    for (const Tensor* tensor : {&y, &tdx, &tdw})
      bytes[threads - 1].push_back(read_bytes(*tensor, stream));
    if (gated) bytes[threads - 1].push_back(read_bytes(tdg, stream));
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST(GatedNorm, RefusesGroupsThatDoNotDivide) {
  const Stream stream = Stream::cpu("ops", 1);
  const Tensor x({2, 6}, DType::float32, stream), y({2, 6}, DType::float32, stream),
      weight({6}, DType::float32, stream);
  for (const std::int64_t group : {0, 4, -1}) {
    test::expect_error(ExitCode::internal, "a group has",
                       [&] { gated_norm({.group = group}, x, x, weight, y, stream); });
  }
}

}  // namespace
}  // namespace longhaul::runtime::ops
