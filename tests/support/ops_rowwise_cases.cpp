// Norm, rotation, gated activation, embedding and casts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "runtime/ops/cast.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/glu.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/rope.h"
#include "tests/support/host_tensors.h"
#include "tests/support/ops_cases.h"
#include "tests/support/ops_data.h"

namespace longhaul::test {
namespace {

using namespace runtime;
using ops::Write;

constexpr double kEps = 1e-5;
constexpr DType kDTypes[] = {DType::float32, DType::bfloat16};

/// A handful of fp32 roundings, or those and one to the result's dtype.
double bound(DType dtype) { return 8 * unit_roundoff(DType::float32) + unit_roundoff(dtype); }

Values inputs(std::int64_t count, unsigned seed, DType dtype) {
  return random_values(count, seed, dtype == DType::bfloat16);
}

struct NormReference {
  Values y, inverse, dx, dx_scale, dweight, dweight_scale;
};
NormReference norm_reference(const Values& x, const Values& weight, const Values& dy) {
  const std::size_t h = weight.size();
  NormReference r;
  r.dweight.resize(h);
  r.dweight_scale.resize(h);
  for (std::size_t row = 0; row * h < x.size(); ++row) {
    const double* xs = x.data() + row * h;
    const double* dys = dy.data() + row * h;
    double squares = 0, dot = 0, dot_scale = 0;
    for (std::size_t i = 0; i < h; ++i) {
      squares += xs[i] * xs[i];
      dot += weight[i] * dys[i] * xs[i];
      dot_scale += std::abs(weight[i] * dys[i] * xs[i]);
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(h) + kEps);
    r.inverse.push_back(inverse);
    const double cube = inverse * inverse * inverse / static_cast<double>(h);
    for (std::size_t i = 0; i < h; ++i) {
      r.y.push_back(xs[i] * inverse * weight[i]);
      r.dx.push_back(inverse * weight[i] * dys[i] - cube * dot * xs[i]);
      r.dx_scale.push_back(std::abs(inverse * weight[i] * dys[i]) +
                           std::abs(cube * dot_scale * xs[i]));
      r.dweight[i] += dys[i] * xs[i] * inverse;
      r.dweight_scale[i] += std::abs(dys[i] * xs[i] * inverse);
    }
  }
  return r;
}

void norm(const Stream& stream) {
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, h, offset] : std::vector<std::array<std::int64_t, 3>>{{0, 8, 0},
                                                                                  {1, 1, 0},
                                                                                  {7, 7, 0},
                                                                                  {127, 70, 0},
                                                                                  {7, 136, 0},
                                                                                  {7, 136, 1},
                                                                                  {3, 2056, 0},
                                                                                  {2, 2049, 3}}) {
      SCOPED_TRACE(concat(name(dtype), " rows ", rows, " h ", h, " offset ", offset));
      const Values x = inputs(rows * h, 1, dtype), weight = random_values(h, 2);
      const NormReference expected = norm_reference(x, weight, Values(x.size()));
      const Placed tx = put(x, {rows, h}, dtype, stream, offset),
                   tw = put(weight, {h}, DType::float32, stream),
                   y = put_nothing({rows, h}, dtype, stream, offset),
                   again = put_nothing({rows, h}, dtype, stream, offset),
                   inverse = put_nothing({rows}, DType::float32, stream);
      ops::rms_norm(tx, tw, kEps, y, inverse, stream);
      ops::rms_norm_apply(tx, tw, inverse, again, stream);
      expect_near(get(y, stream), expected.y, bound(dtype));
      expect_near(get(inverse, stream), expected.inverse, bound(DType::float32));
      EXPECT_EQ(get_bytes(y, stream), get_bytes(again, stream));
    }
  }
}

void norm_backward(const Stream& stream) {
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, h, offset] : std::vector<std::array<std::int64_t, 3>>{{0, 8, 0},
                                                                                  {1, 1, 0},
                                                                                  {7, 7, 0},
                                                                                  {127, 70, 0},
                                                                                  {33, 136, 0},
                                                                                  {33, 136, 1},
                                                                                  {101, 264, 0},
                                                                                  {3, 2056, 0},
                                                                                  {35, 521, 0},
                                                                                  {35, 4104, 0}}) {
      const Values x = inputs(rows * h, 1, dtype), weight = random_values(h, 2),
                   dy = random_values(rows * h, 3), dx_start = inputs(rows * h, 4, dtype),
                   dweight_start = random_values(h, 5);
      for (const Write write : {Write::overwrite, Write::add}) {
        SCOPED_TRACE(concat(name(dtype), " rows ", rows, " h ", h, " offset ", offset,
                            write == Write::add ? " add" : ""));
        NormReference expected = norm_reference(x, weight, dy);
        for (std::size_t i = 0; i < x.size() && write == Write::add; ++i) {
          expected.dx[i] += dx_start[i];
          expected.dx_scale[i] += std::abs(dx_start[i]);
        }
        for (std::size_t i = 0; i < weight.size(); ++i) {
          expected.dweight[i] += dweight_start[i];
          expected.dweight_scale[i] += std::abs(dweight_start[i]);
        }
        std::vector<std::uint8_t> bytes[2];
        for (auto& of_run : bytes) {
          const Placed tx = put(x, {rows, h}, dtype, stream, offset),
                       tw = put(weight, {h}, DType::float32, stream),
                       tdy = put(dy, {rows, h}, DType::float32, stream),
                       dw = put(dweight_start, {h}, DType::float32, stream),
                       y = put_nothing({rows, h}, dtype, stream),
                       inverse = put_nothing({rows}, DType::float32, stream);
          const Placed dx = write == Write::add ? put(dx_start, {rows, h}, dtype, stream, offset)
                                                : put_nothing({rows, h}, dtype, stream, offset);
          ops::rms_norm(tx, tw, kEps, y, inverse, stream);
          ops::rms_norm_backward({tx, tw, inverse, tdy}, dx, write, dw, stream);
          expect_within(get(dx, stream), expected.dx, expected.dx_scale, bound(dtype));
          expect_within(get(dw, stream), expected.dweight, expected.dweight_scale,
                        bound(DType::float32));
          of_run = get_bytes(dx, stream);
          const auto more = get_bytes(dw, stream);
          of_run.insert(of_run.end(), more.begin(), more.end());
        }
        EXPECT_EQ(bytes[0], bytes[1]) << "differs between two runs";
      }
    }
  }
}

/// [rows,heads,dim], or that as a slice of memory with a head more before and two behind.
struct Heads {
  Placed memory;
  TensorView view;
  std::int64_t all = 0, first = 0;  // heads of the memory, and where the view's begin
};
Heads heads_of(const Values& values, std::int64_t rows, std::int64_t heads, std::int64_t dim,
               bool sliced, DType dtype, const Stream& stream) {
  Heads result;
  result.all = sliced ? heads + 3 : heads;
  result.first = sliced ? 1 : 0;
  Values memory(at(rows * result.all * dim), 77);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < heads * dim; ++i)
      memory[at((row * result.all + result.first) * dim + i)] = values[at(row * heads * dim + i)];
  }
  result.memory = put(memory, {rows, result.all, dim}, dtype, stream);
  result.view = result.memory.view.slice(1, result.first, result.first + heads);
  return result;
}
Values get(const Heads& from, const Stream& stream) {
  const std::int64_t row_size = from.all * from.view.size(2),
                     begin = from.first * from.view.size(2),
                     end = begin + from.view.size(1) * from.view.size(2);
  const Values memory = get(from.memory, stream);
  Values values;
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const auto column = static_cast<std::int64_t>(i) % row_size;
    if (begin <= column && column < end) {
      values.push_back(memory[i]);
    } else {
      EXPECT_EQ(memory[i], 77) << "outside of the slice, at " << i;
    }
  }
  return values;
}

void rotate(DType from, DType to, DType position_dtype, bool sliced, std::int64_t rows,
            std::int64_t heads, std::int64_t dim, const Stream& stream) {
  SCOPED_TRACE(concat(name(from), " to ", name(to), " ", rows, " x ", heads, " x ", dim,
                      sliced ? " sliced" : ""));
  const double theta = 500000, factor = 1.5;
  const std::int64_t half = dim / 2;
  const Values x = inputs(rows * heads * dim, 1, from), nothing(x.size(), NAN);
  Values positions, frequencies, cosines, sines, y(x.size());
  for (std::int64_t i = 0; i < half; ++i)
    frequencies.push_back(std::pow(theta, -2 * static_cast<double>(i) / static_cast<double>(dim)));
  for (std::int64_t row = 0; row < rows; ++row) {
    positions.push_back(static_cast<double>(row * row * row * 37 % 2000003));
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle =
          positions.back() / std::pow(theta, 2 * static_cast<double>(i) / static_cast<double>(dim));
      const double cosine = factor * std::cos(angle), sine = factor * std::sin(angle);
      cosines.push_back(cosine);
      sines.push_back(sine);
      for (std::int64_t head = 0; head < heads; ++head) {
        const std::size_t a = at((row * heads + head) * dim + i), b = a + at(half);
        y[a] = x[a] * cosine - x[b] * sine;
        y[b] = x[b] * cosine + x[a] * sine;
      }
    }
  }
  const Heads tx = heads_of(x, rows, heads, dim, sliced, from, stream),
              ty = heads_of(nothing, rows, heads, dim, sliced, to, stream),
              whole = heads_of(nothing, rows, heads, dim, false, to, stream),
              back = heads_of(nothing, rows, heads, dim, sliced, from, stream);
  const Placed tp = put(positions, {rows}, position_dtype, stream),
               tc = put_nothing({rows, half}, DType::float32, stream),
               ts = put_nothing({rows, half}, DType::float32, stream);
  ops::rope_table(tp, frequencies, factor, tc, ts, stream);
  expect_within(get(tc, stream), cosines, Values(cosines.size(), factor), bound(DType::float32));
  expect_within(get(ts, stream), sines, Values(sines.size(), factor), bound(DType::float32));
  ops::rope(tx.view, tc, ts, ops::Rotation::forward, ty.view, stream);
  ops::rope(tx.view, tc, ts, ops::Rotation::forward, whole.view, stream);
  // Two products of magnitudes of at most 1 and the factor.
  expect_within(get(ty, stream), y, Values(y.size(), 2 * factor), bound(to));
  EXPECT_EQ(get(ty, stream), get(whole, stream)) << "depends on where rows lie";
  EXPECT_EQ(get(tx, stream), x) << "the input was written";
  ops::rope(ty.view, tc, ts, ops::Rotation::inverse, back.view, stream);
  Values twice = x;
  for (double& value : twice) value *= factor * factor;
  expect_within(get(back, stream), twice, Values(x.size(), 4 * factor * factor),
                std::max(bound(from), bound(to)));
  if (from != to) return;
  ops::rope(tx.view, tc, ts, ops::Rotation::forward, tx.view, stream);
  EXPECT_EQ(get(tx, stream), get(ty, stream)) << "in place";
}

void rotation(const Stream& stream) {
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      for (const auto& [rows, heads, dim] :
           std::vector<std::array<std::int64_t, 3>>{{0, 3, 8},
                                                    {1, 1, 2},
                                                    {7, 3, 10},
                                                    {127, 2, 32},
                                                    {3, 20, 128},
                                                    {2200, 1, 2},
                                                    {3, 1, 1034}}) {
        for (const bool sliced : {false, true})
          rotate(from, to, DType::int32, sliced, rows, heads, dim, stream);
        rotate(from, to, DType::int64, false, rows, heads, dim, stream);
      }
    }
  }
}

/// f(g), its derivative, and how far a few roundings of its argument move that.
struct Gated {
  double value, slope, slope_scale;
};
Gated silu(double g) {
  const double sigmoid = 1 / (1 + std::exp(-g)), rest = 1 / (1 + std::exp(g));
  return {g * sigmoid, sigmoid * (1 + g * rest), sigmoid * (1 + std::abs(g))};
}
Gated gelu(double g) {
  const double root = std::sqrt(2 / std::numbers::pi), z = root * (g + 0.044715 * g * g * g),
               dz = root * (1 + 3 * 0.044715 * g * g);
  const double half = 1 / (1 + std::exp(-2 * z)), rest = 1 / (1 + std::exp(2 * z));  // (1 +- t) / 2
  const double moved = 2 * std::abs(g) * half * rest * dz;
  // In fp32 `half` is 1 from g = 6 on, so what multiplies `rest` is lost.
  const double near = std::min(std::abs(g), 6.0);
  const double lost = near * 2 * root * (1 + 3 * 0.044715 * near * near);
  return {g * half, half + 2 * g * half * rest * dz,
          half * (1 + lost) + moved * (1 + 2 * std::abs(z))};
}

void gated_activation(ops::Glu kind, Gated (*of)(double), const Stream& stream) {
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, f, offset] : std::vector<std::array<std::int64_t, 3>>{{0, 8, 0},
                                                                                  {1, 1, 0},
                                                                                  {7, 37, 0},
                                                                                  {127, 33, 0},
                                                                                  {7, 64, 0},
                                                                                  {7, 64, 1},
                                                                                  {3, 2056, 0},
                                                                                  {2, 257, 0},
                                                                                  {2200, 3, 0}}) {
      SCOPED_TRACE(concat(name(dtype), " ", rows, " x ", f, " offset ", offset));
      Values gate_up = inputs(rows * 2 * f, 1, dtype);
      const Values dy = inputs(rows * f, 3, dtype);
      Values y, dgate, dgate_scale, dup;
      for (std::int64_t i = 0; i < rows * f; ++i) {
        const std::int64_t row = i / f, column = i % f;
        double& g = gate_up[at(row * 2 * f + column)];
        const double up = gate_up[at(row * 2 * f + f + column)], d = dy[at(i)];
        // Both tails of the sigmoid, one beyond where e^-gate overflows; powers of two stay exact.
        g *= i % 7 == 3 ? 256 : 16;
        const auto [value, slope, slope_scale] = of(g);
        y.push_back(value * up);
        dup.push_back(d * value);
        dgate.push_back(d * up * slope);
        // The least term is for what fp32 cannot hold.
        dgate_scale.push_back(std::abs(d * up) * slope_scale + 0x1p-100);
      }
      const Placed tg = put(gate_up, {rows, 2 * f}, dtype, stream, offset),
                   td = put(dy, {rows, f}, dtype, stream, offset),
                   ty = put_nothing({rows, f}, dtype, stream, offset);
      ops::glu(kind, tg, ty, stream);
      expect_near(get(ty, stream), y, bound(dtype));
      EXPECT_EQ(get(tg, stream), gate_up) << "the input was written";
      ops::glu_backward(kind, tg, td, stream);
      EXPECT_EQ(get_bytes(td, stream), get_bytes(ty, stream)) << "y again";
      const Values gradients = get(tg, stream);
      Values actual_dgate, actual_dup;
      for (std::int64_t row = 0; row < rows; ++row) {
        const auto begin = gradients.begin() + row * 2 * f;
        actual_dgate.insert(actual_dgate.end(), begin, begin + f);
        actual_dup.insert(actual_dup.end(), begin + f, begin + 2 * f);
      }
      expect_near(actual_dup, dup, bound(dtype));
      expect_within(actual_dgate, dgate, dgate_scale, bound(dtype));
    }
  }
}

void swiglus(const Stream& stream) { gated_activation(ops::Glu::swiglu, silu, stream); }
void geglus(const Stream& stream) { gated_activation(ops::Glu::geglu, gelu, stream); }

void casts(const Stream& stream) {
  for (const std::int64_t n : {0, 1, 7, 8, 127, 5000}) {
    for (const std::int64_t offset : {0, 1}) {
      Values a = random_values(n, 1);
      for (std::int64_t i = 0; i < n; ++i)
        a[at(i)] = std::ldexp(a[at(i)], static_cast<int>(i % 60) - 30);
      if (n > 6) {
        a[0] = INFINITY;
        a[1] = -0.0;
        a[2] = 1 + 0x1p-8;      // a tie: down to even
        a[3] = 1 + 3 * 0x1p-8;  // a tie: up to even
        a[4] = -3.4e38;         // rounds to -inf in bfloat16
        a[5] = 0x1p-149;
      }
      for (const DType from : kDTypes) {
        Values of_a;
        for (const double value : a) of_a.push_back(rounded(value, from));
        const Placed ta = put(of_a, {n}, from, stream, offset);
        for (const DType to : kDTypes) {
          SCOPED_TRACE(concat(n, " from ", name(from), " to ", name(to), " offset ", offset));
          const Placed cast_to = put_nothing({n}, to, stream, offset);
          ops::cast(ta, cast_to, stream);
          Values expected;
          for (const double value : of_a) expected.push_back(rounded(value, to));
          EXPECT_EQ(get(cast_to, stream), expected);
        }
      }
    }
  }
  const Placed nan = put({NAN, -NAN}, {2}, DType::float32, stream),
               narrow = put_nothing({2}, DType::bfloat16, stream);
  ops::cast(nan, narrow, stream);
  for (const double value : get(narrow, stream)) EXPECT_TRUE(std::isnan(value));
}

void embeddings(const Stream& stream) {
  for (const auto& [rows, vocabulary, h, offset] :
       std::vector<std::array<std::int64_t, 4>>{{0, 5, 8, 0},
                                                {1, 1, 7, 0},
                                                {127, 5, 24, 0},
                                                {127, 5, 24, 1},
                                                {600, 259, 3, 0},
                                                {700, 66000, 2, 0},
                                                {515, 7, 8, 0},
                                                {8500, 300, 1, 0}}) {
    for (const DType dtype : kDTypes) {
      for (const DType other : kDTypes) {
        if (rows > 1000 && (dtype != DType::float32 || other != dtype)) continue;
        SCOPED_TRACE(concat(rows, " rows, V ", vocabulary, " h ", h, " offset ", offset, " ",
                            name(dtype), " ", name(other)));
        Values tokens;
        for (std::int64_t row = 0; row < rows; ++row) {
          // Many rows of one token, others anywhere.
          tokens.push_back(
              static_cast<double>(row % 3 == 0 ? vocabulary - 1 : row * 7919 % vocabulary));
        }
        const Values table = inputs(vocabulary * h, 1, dtype), dout = inputs(rows * h, 2, other);
        Values out;
        std::vector<float> sums;  // in the order that the contract names
        for (const double value : random_values(vocabulary * h, 3))
          sums.push_back(static_cast<float>(value));
        const Values start(sums.begin(), sums.end());
        for (std::int64_t row = 0; row < rows; ++row) {
          const auto token = static_cast<std::int64_t>(tokens[at(row)]);
          for (std::int64_t i = 0; i < h; ++i) {
            out.push_back(rounded(table[at(token * h + i)], other));
            sums[at(token * h + i)] += static_cast<float>(dout[at(row * h + i)]);
          }
        }
        const Placed ids = put(tokens, {rows}, DType::int32, stream),
                     tt = put(table, {vocabulary, h}, dtype, stream, offset),
                     to = put_nothing({rows, h}, other, stream, offset),
                     td = put(dout, {rows, h}, other, stream, offset),
                     dtable = put(start, {vocabulary, h}, DType::float32, stream, offset);
        ops::embedding(tt, ids, to, stream);
        ops::embedding_backward(td, ids, dtable, stream);
        EXPECT_EQ(get(to, stream), out);
        EXPECT_EQ(get(dtable, stream), Values(sums.begin(), sums.end()));
      }
    }
  }
}

void bad_tokens(const Stream& stream) {
  const Placed table = put({1, 2, 3, 4, 5, 6}, {3, 2}, DType::float32, stream),
               dout = put({1, 1, 1, 1, 1, 1, 1, 1}, {4, 2}, DType::float32, stream),
               ids = put({2, -1, 3, 0}, {4}, DType::int32, stream),
               out = put({0, 0, 0, 0, 0, 0, 0, 0}, {4, 2}, DType::float32, stream);
  ops::embedding(table, ids, out, stream);
  ops::embedding_backward(dout, ids, table, stream);
  const Values rows = get(out, stream), gradients = get(table, stream);
  EXPECT_EQ(Values(rows.begin(), rows.begin() + 2), (Values{5, 6}));
  for (std::size_t i = 2; i < 6; ++i) EXPECT_TRUE(std::isnan(rows[i])) << i;
  EXPECT_EQ(Values(rows.begin() + 6, rows.end()), (Values{1, 2}));
  EXPECT_TRUE(std::isnan(gradients[0]) && std::isnan(gradients[1]));
  EXPECT_EQ(Values(gradients.begin() + 2, gradients.end()), (Values{3, 4, 6, 7}));
}

constexpr OpsCase kCases[] = {
    {"RmsNorm", norm},         {"RmsNormBackward", norm_backward},
    {"Rope", rotation},        {"Swiglu", swiglus},
    {"Geglu", geglus},         {"Cast", casts},
    {"Embedding", embeddings}, {"BadTokensBecomeNaN", bad_tokens},
};

}  // namespace

std::span<const OpsCase> rowwise_cases() { return kCases; }

}  // namespace longhaul::test
