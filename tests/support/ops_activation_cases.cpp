// What the options of a block need of operations: an offset of norm weights, a norm's factor alone,
// a rotation of some dims, output gates, squared relu, multiples, biases, caps. Of any device.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>

#include "runtime/ops/bias.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/rope.h"
#include "runtime/ops/scaled.h"
#include "runtime/ops/sigmoid_gate.h"
#include "runtime/ops/softcap.h"
#include "runtime/ops/squared_relu.h"
#include "tests/support/host_tensors.h"
#include "tests/support/ops_cases.h"
#include "tests/support/ops_data.h"

namespace longhaul::test {
namespace {

using namespace runtime;
using ops::Write;

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16};
constexpr std::int64_t kSizes[] = {0, 1, 7, 127, 4099, 65536};

double bound(DType dtype) { return 8 * unit_roundoff(DType::float32) + unit_roundoff(dtype); }

Values inputs(std::int64_t count, unsigned seed, DType dtype) {
  return random_values(count, seed, dtype == DType::bfloat16);
}

/// A norm whose weights are offset is that of the sums.
void offset_norm(const Stream& stream) {
  constexpr double kEps = 1e-6;
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, h] : std::vector<std::array<std::int64_t, 2>>{
             {0, 8}, {1, 1}, {7, 7}, {127, 70}, {7, 136}, {3, 2056}, {1040, 8}}) {
      SCOPED_TRACE(concat(name(dtype), " ", rows, " x ", h));
      const Values x = inputs(rows * h, 1, dtype), dy = random_values(rows * h, 3);
      Values small, sums;  // exact in fp32 both
      for (const double value : random_values(h, 2, true)) {
        small.push_back(value);
        sums.push_back(1 + value);
      }
      const Placed tx = put(x, {rows, h}, dtype, stream),
                   tdy = put(dy, {rows, h}, DType::float32, stream);
      std::vector<std::uint8_t> of[2];
      for (const int way : {0, 1}) {
        const Placed tw = put(way == 0 ? small : sums, {h}, DType::float32, stream);
        const ops::NormWeight weight(tw, way == 0 ? 1 : 0);
        const Placed y = put_nothing({rows, h}, dtype, stream),
                     again = put_nothing({rows, h}, dtype, stream),
                     dx = put_nothing({rows, h}, dtype, stream),
                     inverse = put_nothing({rows}, DType::float32, stream),
                     dw = put(Values(small.size(), 0.5), {h}, DType::float32, stream);
        ops::rms_norm(tx, weight, kEps, y, inverse, stream);
        const Placed alone = put_nothing({rows}, DType::float32, stream);
        ops::inverse_rms(tx, kEps, alone, stream);
        EXPECT_EQ(get_bytes(alone, stream), get_bytes(inverse, stream));
        ops::rms_norm_apply(tx, weight, inverse, again, stream);
        ops::rms_norm_backward({tx, weight, inverse, tdy}, dx, Write::overwrite, dw, stream);
        EXPECT_EQ(get_bytes(y, stream), get_bytes(again, stream));
        for (const Placed* part : {&y, &dx, &dw}) {
          const auto bytes = get_bytes(*part, stream);
          of[way].insert(of[way].end(), bytes.begin(), bytes.end());
        }
      }
      EXPECT_EQ(of[0], of[1]);
    }
  }
}

void partial_rotation(const Stream& stream) {
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      for (const auto& [rows, heads, dim, turned] :
           std::vector<std::array<std::int64_t, 4>>{{0, 3, 8, 2},
                                                    {1, 1, 2, 0},
                                                    {7, 3, 10, 4},
                                                    {7, 2, 7, 0},
                                                    {127, 2, 64, 16},
                                                    {5, 3, 128, 32},
                                                    {5, 3, 20, 16},
                                                    {2200, 1, 5, 2}}) {
        SCOPED_TRACE(concat(name(from), " to ", name(to), " ", rows, " x ", heads, " x ", dim,
                            ", of which ", turned));
        const std::int64_t half = turned / 2;
        const Values x = inputs(rows * heads * dim, 1, from);
        Values positions, frequencies, y(x);
        for (std::int64_t i = 0; i < half; ++i)
          frequencies.push_back(
              std::pow(1e4, -2 * static_cast<double>(i) / static_cast<double>(turned)));
        for (std::int64_t row = 0; row < rows; ++row) {
          positions.push_back(static_cast<double>(row * 37 % 1009));
          for (std::int64_t head = 0; head < heads; ++head) {
            for (std::int64_t i = 0; i < half; ++i) {
              const double angle =
                  positions.back() /
                  std::pow(1e4, 2 * static_cast<double>(i) / static_cast<double>(turned));
              const std::size_t a = at((row * heads + head) * dim + i), b = a + at(half);
              y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
              y[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
            }
          }
        }
        const Placed tx = put(x, {rows, heads, dim}, from, stream),
                     ty = put_nothing({rows, heads, dim}, to, stream),
                     back = put_nothing({rows, heads, dim}, from, stream),
                     tp = put(positions, {rows}, DType::int32, stream),
                     tc = put_nothing({rows, half}, DType::float32, stream),
                     ts = put_nothing({rows, half}, DType::float32, stream);
        ops::rope_table(tp, frequencies, 1, tc, ts, stream);
        ops::rope(tx, tc, ts, ops::Rotation::forward, ty, stream);
        expect_within(get(ty, stream), y, Values(y.size(), 2), bound(to));
        ops::rope(ty, tc, ts, ops::Rotation::inverse, back, stream);
        expect_within(get(back, stream), x, Values(x.size(), 4), std::max(bound(from), bound(to)));
        if (from != to) continue;
        ops::rope(tx, tc, ts, ops::Rotation::forward, tx, stream);
        EXPECT_EQ(get_bytes(tx, stream), get_bytes(ty, stream)) << "in place";
      }
    }
  }
}

void output_gate(const Stream& stream) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t n : kSizes) {
      for (const std::int64_t offset : {0, 1}) {
        SCOPED_TRACE(concat(name(dtype), " ", n, " offset ", offset));
        const Values x = inputs(n, 1, dtype), dy = inputs(n, 2, dtype);
        Values gate = inputs(n, 3, dtype), y, dx, dgate, dgate_scale;
        for (std::int64_t i = 0; i < n; ++i) {
          double& g = gate[at(i)];
          g *= i % 7 == 3 ? 256 : 16;  // both tails, one beyond where e^-gate overflows
          const double sigmoid = 1 / (1 + std::exp(-g)), rest = 1 / (1 + std::exp(g));
          y.push_back(x[at(i)] * sigmoid);
          dx.push_back(dy[at(i)] * sigmoid);
          dgate.push_back(dy[at(i)] * x[at(i)] * sigmoid * rest);
          // Its last factor is the difference of two numbers near 1.
          dgate_scale.push_back(std::abs(dy[at(i)] * x[at(i)]) * sigmoid + 0x1p-100);
        }
        const Placed tx = put(x, {n}, dtype, stream, offset),
                     tg = put(gate, {n}, dtype, stream, offset),
                     td = put(dy, {n}, dtype, stream, offset),
                     ty = put_nothing({n}, dtype, stream, offset);
        ops::sigmoid_gate(tx, tg, ty, stream);
        expect_near(get(ty, stream), y, bound(dtype));
        EXPECT_EQ(get(tg, stream), gate) << "the gate was written";
        ops::sigmoid_gate_backward(tx, tg, td, stream);
        expect_near(get(td, stream), dx, bound(dtype));
        expect_within(get(tg, stream), dgate, dgate_scale, bound(dtype));
        EXPECT_EQ(get(tx, stream), x) << "the input was written";
      }
    }
  }
}

void squared_relus(const Stream& stream) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t n : kSizes) {
      for (const std::int64_t offset : {0, 1}) {
        SCOPED_TRACE(concat(name(dtype), " ", n, " offset ", offset));
        Values x = inputs(n, 1, dtype);
        if (n > 6) x[5] = 0, x[6] = -0.0;
        const Values dy = inputs(n, 2, dtype);
        Values y, dx;
        for (std::size_t i = 0; i < x.size(); ++i) {
          const double positive = std::max(x[i], 0.0);
          y.push_back(positive * positive);
          dx.push_back(2 * positive * dy[i]);
        }
        const Placed tx = put(x, {n}, dtype, stream, offset),
                     td = put(dy, {n}, dtype, stream, offset),
                     ty = put_nothing({n}, dtype, stream, offset);
        ops::squared_relu(tx, ty, stream);
        expect_near(get(ty, stream), y, bound(dtype));
        ops::squared_relu_backward(tx, td, stream);
        expect_near(get(tx, stream), dx, bound(dtype));
        EXPECT_EQ(get_bytes(td, stream), get_bytes(ty, stream)) << "y again";
      }
    }
  }
  const Placed nan = put({NAN}, {1}, DType::float32, stream),
               result = put_nothing({1}, DType::float32, stream);
  ops::squared_relu(nan, result, stream);
  EXPECT_TRUE(std::isnan(get(result, stream)[0]));
}

void multiples(const Stream& stream) {
  constexpr double kFactor = -3.25;
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      for (const std::int64_t n : kSizes) {
        for (const Write write : {Write::overwrite, Write::add}) {
          SCOPED_TRACE(concat(name(from), " to ", name(to), " ", n, " add ",
                              write == Write::add ? "yes" : "no"));
          const Values x = inputs(n, 1, from), start = inputs(n, 2, to);
          Values y, scale;
          for (std::size_t i = 0; i < x.size(); ++i) {
            const double base = write == Write::add ? start[i] : 0;
            y.push_back(base + kFactor * x[i]);
            scale.push_back(std::abs(base) + std::abs(kFactor * x[i]));
          }
          const Placed tx = put(x, {n}, from, stream, n % 2),
                       ty = write == Write::add ? put(start, {n}, to, stream)
                                                : put_nothing({n}, to, stream);
          ops::scaled(tx, kFactor, write, ty, stream);
          expect_within(get(ty, stream), y, scale, bound(to));
          if (from != to || write == Write::add) continue;
          ops::scaled(tx, kFactor, write, tx, stream);
          EXPECT_EQ(get_bytes(tx, stream), get_bytes(ty, stream)) << "in place";
        }
      }
    }
  }
}

void biases(const Stream& stream) {
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, m, offset] : std::vector<std::array<std::int64_t, 3>>{{0, 8, 0},
                                                                                  {1, 1, 0},
                                                                                  {7, 0, 0},
                                                                                  {7, 7, 0},
                                                                                  {127, 70, 0},
                                                                                  {67, 136, 1},
                                                                                  {3, 2056, 0},
                                                                                  {1040, 8, 0},
                                                                                  {17003, 3, 0}}) {
      SCOPED_TRACE(concat(name(dtype), " ", rows, " x ", m, " offset ", offset));
      const Values x = inputs(rows * m, 1, dtype), bias = random_values(m, 2);
      Values y, scale, sums(at(m), 0.5), sums_scale(at(m), 0.5);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t column = i % at(m);
        y.push_back(x[i] + bias[column]);
        scale.push_back(std::abs(x[i]) + std::abs(bias[column]));
        sums[column] += x[i];
      }
      for (std::size_t i = 0; i < sums.size(); ++i) sums_scale[i] += std::abs(sums[i] - 0.5);
      const Placed tx = put(x, {rows, m}, dtype, stream, offset),
                   tb = put(bias, {m}, DType::float32, stream),
                   db = put(Values(at(m), 0.5), {m}, DType::float32, stream);
      ops::bias_backward(tx, db, stream);
      expect_within(get(db, stream), sums, sums_scale, 2 * unit_roundoff(DType::float32));
      ops::add_bias(tb, tx, stream);
      expect_within(get(tx, stream), y, scale, bound(dtype));
    }
  }
}

void caps(const Stream& stream) {
  constexpr double kCap = 30;
  for (const std::int64_t n : kSizes) {
    for (const std::int64_t offset : {0, 1}) {
      SCOPED_TRACE(concat(n, " offset ", offset));
      Values x = random_values(n, 1), y, scale;
      for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = std::ldexp(x[i], static_cast<int>(i % 40) - 20);  // from where tanh(x) is x
        if (i == 5) x[i] = 0;
        if (i == 6) x[i] = -INFINITY;
        y.push_back(kCap * std::tanh(x[i] / kCap));
        scale.push_back(std::abs(y.back()) + 0x1p-100);
      }
      const Placed tx = put(x, {n}, DType::float32, stream, offset);
      ops::softcap(tx, kCap, stream);
      expect_within(get(tx, stream), y, scale, 8 * unit_roundoff(DType::float32));
    }
  }
  const Placed nan = put({NAN}, {1}, DType::float32, stream);
  ops::softcap(nan, kCap, stream);
  EXPECT_TRUE(std::isnan(get(nan, stream)[0]));
  EXPECT_THROW(ops::softcap(nan, 0, stream), Error);
}

constexpr OpsCase kCases[] = {
    {"OffsetNorm", offset_norm},
    {"PartialRotation", partial_rotation},
    {"OutputGate", output_gate},
    {"SquaredRelu", squared_relus},
    {"Multiples", multiples},
    {"Biases", biases},
    {"Caps", caps},
};

}  // namespace

std::span<const OpsCase> activation_cases() { return kCases; }

}  // namespace longhaul::test
