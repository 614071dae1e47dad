// Norm, rope, glu, embedding and cast against definitions in double; backwards against
// central differences of those definitions.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <utility>

#include "runtime/ops/bias.h"
#include "runtime/ops/cast.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/glu.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/rope.h"
#include "tests/support/differences.h"
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

constexpr double kFloatBound = 3e-6;  // the design's bound for fp32
// One rounding to 8 bits: its relative error is at most this.
constexpr double kBFloat16Bound = 0x1p-8;
constexpr double kEps = 1e-5;

double bound(DType dtype) { return dtype == DType::bfloat16 ? kBFloat16Bound : kFloatBound; }
std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

Values norm_reference(const Values& x, const Values& weight) {
  const std::size_t h = weight.size();
  Values y;
  for (std::size_t row = 0; row * h < x.size(); ++row) {
    double sum = 0;
    for (std::size_t i = 0; i < h; ++i) sum += x[row * h + i] * x[row * h + i];
    const double inverse = 1 / std::sqrt(sum / static_cast<double>(h) + kEps);
    for (std::size_t i = 0; i < h; ++i) y.push_back(x[row * h + i] * inverse * weight[i]);
  }
  return y;
}

class Rows : public ::testing::TestWithParam<std::tuple<std::int64_t, DType>> {
 protected:
  std::int64_t rows() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  Values values(std::int64_t count, unsigned seed) const {
    return random_values(count, seed, dtype() == DType::bfloat16);
  }
  const Stream one_ = Stream::cpu("one", 1), two_ = Stream::cpu("two", 2);
};
INSTANTIATE_TEST_SUITE_P(Ops, Rows,
                         ::testing::Combine(::testing::Values(0, 1, 7, 127),
                                            ::testing::Values(DType::float32, DType::bfloat16)));

TEST_P(Rows, RmsNorm) {
  const std::int64_t h = 70;
  const Values x = values(rows() * h, 1), weight = random_values(h, 2);
  std::vector<std::byte> bytes[2];
  for (const Stream& stream : {one_, two_}) {
    const Tensor tx = make_tensor(x, {rows(), h}, dtype(), stream),
                 tw = make_tensor(weight, {h}, DType::float32, stream);
    const Tensor y({rows(), h}, dtype(), stream), again({rows(), h}, dtype(), stream);
    const Tensor inverse({rows()}, DType::float32, stream);
    rms_norm(tx, tw, kEps, y, inverse, stream);
    rms_norm_apply(tx, tw, inverse, again, stream);
    EXPECT_LE(relative_error(read(y, stream), norm_reference(x, weight)), bound(dtype()));
    EXPECT_EQ(read_bytes(y, stream), read_bytes(again, stream));
    bytes[stream.threads() - 1] = read_bytes(y, stream);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST_P(Rows, RmsNormBackward) {
  const std::int64_t h = 70;
  const Values x = values(rows() * h, 1), weight = random_values(h, 2),
               dy = random_values(rows() * h, 3);
  const Values dx_start = values(rows() * h, 4), dweight_start = random_values(h, 5);
  Values dx, dweight;
  if (rows() <= 7) {  // differences cost rows^2
    dx = numeric_gradient([&](const Values& v) { return norm_reference(v, weight); }, x, dy);
    dweight = numeric_gradient([&](const Values& v) { return norm_reference(x, v); }, weight, dy);
  }
  for (const Write write : {Write::overwrite, Write::add}) {
    std::vector<std::byte> bytes[2], weight_bytes[2];
    for (const Stream& stream : {one_, two_}) {
      const Tensor tx = make_tensor(x, {rows(), h}, dtype(), stream);
      const Tensor tw = make_tensor(weight, {h}, DType::float32, stream);
      const Tensor tdy = make_tensor(dy, {rows(), h}, DType::float32, stream);
      const Tensor y({rows(), h}, dtype(), stream), inverse({rows()}, DType::float32, stream);
      const Tensor tdx = make_tensor(dx_start, {rows(), h}, dtype(), stream);
      const Tensor tdw = make_tensor(dweight_start, {h}, DType::float32, stream);
      rms_norm(tx, tw, kEps, y, inverse, stream);
      rms_norm_backward({tx, tw, inverse, tdy}, tdx, write, tdw, stream);
      if (rows() <= 7) {
        Values expected_dx = dx, expected_dw = dweight;
        for (std::size_t i = 0; i < dx.size(); ++i)
          expected_dx[i] += write == Write::add ? dx_start[i] : 0;
        for (std::size_t i = 0; i < dweight.size(); ++i) expected_dw[i] += dweight_start[i];
        EXPECT_LE(relative_error(read(tdx, stream), expected_dx), bound(dtype()));
        EXPECT_LE(relative_error(read(tdw, stream), expected_dw), kFloatBound);
      }
      bytes[stream.threads() - 1] = read_bytes(tdx, stream);
      weight_bytes[stream.threads() - 1] = read_bytes(tdw, stream);
    }
    EXPECT_EQ(bytes[0], bytes[1]);
    EXPECT_EQ(weight_bytes[0], weight_bytes[1]);
  }
}

Values rope_reference(const Values& x, const std::vector<std::int64_t>& positions,
                      std::int64_t heads, std::int64_t dim, double theta) {
  // y = x cos + rotate_half(x) sin, rotate_half(x) = (-second half, first half).
  Values y(x.size());
  for (std::size_t row = 0; row < positions.size(); ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::size_t base = (row * at(heads) + at(head)) * at(dim);
      for (std::int64_t i = 0; i < dim; ++i) {
        const double pair = static_cast<double>(i % (dim / 2)) * 2 / static_cast<double>(dim);
        const double angle = static_cast<double>(positions[row]) / std::pow(theta, pair);
        const double half = i < dim / 2 ? -x[base + at(i + dim / 2)] : x[base + at(i - dim / 2)];
        y[base + at(i)] = x[base + at(i)] * std::cos(angle) + half * std::sin(angle);
      }
    }
  }
  return y;
}

TEST_P(Rows, Rope) {
  const std::int64_t heads = 3, dim = 10;
  const double theta = 500000, factor = 1.25;
  const Values x = values(rows() * heads * dim, 1);
  std::vector<std::int64_t> positions;
  for (std::int64_t row = 0; row < rows(); ++row)
    positions.push_back(row * row * row * 37 % 2000003);
  Values frequencies, expected = rope_reference(x, positions, heads, dim, theta), twice = x;
  for (std::int64_t i = 0; i < dim / 2; ++i)
    frequencies.push_back(std::pow(theta, -2 * static_cast<double>(i) / static_cast<double>(dim)));
  for (double& value : expected) value *= factor;
  for (double& value : twice) value *= factor * factor;
  for (const DType position_dtype : {DType::int32, DType::int64}) {
    std::vector<std::byte> bytes[2];
    for (const Stream& stream : {one_, two_}) {
      const Tensor tx = make_tensor(x, {rows(), heads, dim}, dtype(), stream);
      const Tensor at =
          make_tensor(Values(positions.begin(), positions.end()), {rows()}, position_dtype, stream);
      const Tensor cosines({rows(), dim / 2}, DType::float32, stream),
          sines({rows(), dim / 2}, DType::float32, stream);
      rope_table(at, frequencies, factor, cosines, sines, stream);
      rope(tx, cosines, sines, Rotation::forward, tx, stream);
      EXPECT_LE(relative_error(read(tx, stream), expected), bound(dtype()));
      bytes[stream.threads() - 1] = read_bytes(tx, stream);
      rope(tx, cosines, sines, Rotation::inverse, tx,
           stream);  // a rotation's inverse is its adjoint
      EXPECT_LE(relative_error(read(tx, stream), twice), 2 * bound(dtype()));
    }
    EXPECT_EQ(bytes[0], bytes[1]);
  }
}

double silu(double g) { return g / (1 + std::exp(-g)); }
double gelu(double g) {
  return g / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g)));
}

TEST_P(Rows, Glu) {
  for (const auto& [kind, of] : {std::pair{Glu::swiglu, &silu}, std::pair{Glu::geglu, &gelu}}) {
    const std::int64_t f = 37;
    Values gate_up = values(rows() * 2 * f, 1), dy = values(rows() * f, 3);
    Values y, gradients(gate_up.size());
    for (std::size_t i = 0; i < dy.size(); ++i) {
      const double step = 1e-5;
      const std::size_t gate_at = i / at(f) * at(2 * f) + i % at(f), up_at = gate_at + at(f);
      double& gate = gate_up[gate_at];
      gate *= 16;  // both tails of the sigmoid; a power of two keeps bfloat16 exact
      const double up = gate_up[up_at];
      y.push_back(of(gate) * up);
      gradients[gate_at] = dy[i] * up * (of(gate + step) - of(gate - step)) / (2 * step);
      gradients[up_at] = dy[i] * of(gate);
    }
    std::vector<std::byte> bytes[2];
    for (const Stream& stream : {one_, two_}) {
      const Tensor tg = make_tensor(gate_up, {rows(), 2 * f}, dtype(), stream),
                   td = make_tensor(dy, {rows(), f}, dtype(), stream),
                   ty({rows(), f}, dtype(), stream);
      glu(kind, tg, ty, stream);
      glu_backward(kind, tg, td, stream);
      EXPECT_LE(relative_error(read(ty, stream), y), bound(dtype()));
      EXPECT_LE(relative_error(read(tg, stream), gradients), bound(dtype()));
      EXPECT_EQ(read_bytes(td, stream), read_bytes(ty, stream)) << "y again";
      bytes[stream.threads() - 1] = read_bytes(tg, stream);
    }
    EXPECT_EQ(bytes[0], bytes[1]);
  }
}

TEST(Glu, ExtremeGates) {
  const Stream stream = Stream::cpu("ops");
  for (const Glu kind : {Glu::swiglu, Glu::geglu}) {
    const Tensor gate_up =
        make_tensor({-1e30, -200, -88.5, 88.5, 200, 1e30, std::nan(""), 1, 1, 1, 1, 1, 1, 1},
                    {1, 14}, DType::float32, stream);
    const Tensor y({1, 7}, DType::float32, stream);
    glu(kind, gate_up, y, stream);
    const Values result = read(y, stream);
    EXPECT_NEAR(result[1], 0, 1e-30);
    EXPECT_NEAR(result[2], 0, 1e-30);
    EXPECT_EQ(result[3], 88.5);
    EXPECT_EQ(result[4], 200);
    EXPECT_TRUE(std::isnan(result[6])) << "NaN must not be hidden";
    const Tensor dy = make_tensor(Values(7, 1), {1, 7}, DType::float32, stream);
    glu_backward(kind, gate_up, dy, stream);
    const Values gradients = read(gate_up, stream);
    EXPECT_NEAR(gradients[0], 0, 1e-6);
    EXPECT_EQ(gradients[5], 1);
    EXPECT_TRUE(std::isnan(gradients[6]));
  }
}

TEST_P(Rows, Embedding) {
  const std::int64_t vocabulary = 11, h = 130;
  const Values table = random_values(vocabulary * h, 1), dout = values(rows() * h, 2);
  const Values start = random_values(vocabulary * h, 3);
  Values tokens, out, dtable = start;
  for (std::int64_t row = 0; row < rows(); ++row) {
    const std::int64_t token = row * row % 7;  // repeated, and some never
    tokens.push_back(static_cast<double>(token));
    for (std::int64_t i = 0; i < h; ++i) {
      out.push_back(table[at(token * h + i)]);
      dtable[at(token * h + i)] += dout[at(row * h + i)];
    }
  }
  std::vector<std::byte> bytes[2];
  for (const Stream& stream : {one_, two_}) {
    const Tensor tt = make_tensor(table, {vocabulary, h}, DType::float32, stream);
    const Tensor ids = make_tensor(tokens, {rows()}, DType::int32, stream),
                 to({rows(), h}, dtype(), stream);
    embedding(tt, ids, to, stream);
    EXPECT_LE(relative_error(read(to, stream), out),
              dtype() == DType::float32 ? 0 : kBFloat16Bound);
    const Tensor td = make_tensor(dout, {rows(), h}, dtype(), stream);
    const Tensor tdt = make_tensor(start, {vocabulary, h}, DType::float32, stream);
    embedding_backward(td, ids, tdt, stream);
    EXPECT_LE(relative_error(read(tdt, stream), dtable), kFloatBound);
    bytes[stream.threads() - 1] = read_bytes(tdt, stream);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST(Embedding, NamesATokenOutsideTheVocabulary) {
  const Stream stream = Stream::cpu("ops");
  const Tensor table = make_tensor(Values(6, 0.0), {3, 2}, DType::float32, stream);
  const Tensor ids = make_tensor({0, 2, 3}, {3}, DType::int32, stream),
               out({3, 2}, DType::float32, stream);
  embedding(table, ids, out, stream);
  try {
    stream.synchronize(deadline_in(10));
    FAIL() << "a token of 3 in a vocabulary of 3 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::data);
    EXPECT_NE(std::string(error.what()).find("token 3 in row 2"), std::string::npos)
        << error.what();
  }
}

TEST_P(Rows, Cast) {
  const std::int64_t h = 33;
  const Values a = values(rows() * h, 1);
  const Tensor ta = make_tensor(a, {rows(), h}, dtype(), two_);
  const Tensor wide({rows(), h}, DType::float32, two_);
  cast(ta, wide, two_);
  EXPECT_EQ(read(wide, two_), a);
}

TEST(RopeAndSwiglu, RefuseWrongShapes) {
  const Stream stream = Stream::cpu("ops");
  const Tensor x({3, 4, 6}, DType::float32, stream), fewer({3, 2, 6}, DType::float32, stream),
      table({3, 3}, DType::float32, stream);
  const auto rotate = [&](ConstTensorView from, TensorView to) {
    rope(from, table, table, Rotation::forward, to, stream);
  };
  EXPECT_THROW(rotate(x, fewer), Error);
  const Tensor wider({3, 4, 8}, DType::float32, stream);
  EXPECT_THROW(rotate(x, wider.view().slice(2, 0, 6)), Error);  // heads apart
  TensorView overlapping = x;
  overlapping.assign(x.view().data(), DType::float32, x.view().device(), 3, {3, 4, 6}, {12, 6, 1});
  EXPECT_THROW(rotate(x, overlapping), Error);
  const Tensor gate_up({3, 8}, DType::float32, stream), narrow({3, 4}, DType::bfloat16, stream);
  EXPECT_THROW(glu(Glu::swiglu, gate_up, gate_up, stream), Error);
  EXPECT_THROW(glu_backward(Glu::swiglu, gate_up, narrow, stream), Error);
}

TEST(LargeRows, AreThreadIndependent) {
  // Enough elements that the operations really use both threads.
  const std::int64_t rows = 701, h = 130;
  const Values x = random_values(rows * h, 1), dy = random_values(rows * h, 2),
               weight = random_values(h, 3);
  Values tokens;
  for (std::int64_t row = 0; row < rows; ++row) tokens.push_back(static_cast<double>(row % 13));
  std::vector<std::vector<std::byte>> bytes[2];
  for (const int threads : {1, 2}) {
    const Stream stream = Stream::cpu("ops", threads);
    const Tensor tx = make_tensor(x, {rows, h}, DType::float32, stream),
                 tdy = make_tensor(dy, {rows, h}, DType::float32, stream);
    const Tensor tw = make_tensor(weight, {h}, DType::float32, stream),
                 ids = make_tensor(tokens, {rows}, DType::int32, stream);
    const Tensor inverse({rows}, DType::float32, stream), y({rows, h}, DType::float32, stream);
    const Tensor dx({rows, h}, DType::float32, stream),
        other({rows, h / 2}, DType::float32, stream),
        half = make_tensor(random_values(rows * h / 2, 4), {rows, h / 2}, DType::float32, stream);
    const Tensor dw = make_tensor(Values(at(h)), {h}, DType::float32, stream);
    const Tensor table = make_tensor(Values(at(13 * h)), {13, h}, DType::float32, stream);
    const Tensor cosines({rows, 65}, DType::float32, stream),
        sines({rows, 65}, DType::float32, stream);
    rms_norm(tx, tw, kEps, y, inverse, stream);
    rms_norm_backward({tx, tw, inverse, tdy}, dx, Write::overwrite, dw, stream);
    embedding_backward(tdy, ids, table, stream);
    rope_table(ids, Values(65, 0.3), 1, cosines, sines, stream);
    const TensorView heads = y.view().reshape({rows, 1, h});
    rope(heads, cosines, sines, Rotation::forward, heads, stream);
    glu(Glu::swiglu, tx, other, stream);
    glu_backward(Glu::swiglu, tx, half, stream);
    const Tensor db = make_tensor(Values(at(h)), {h}, DType::float32, stream);
    bias_backward(tdy, db, stream);
    for (const Tensor* tensor : {&y, &dx, &dw, &table, &tx, &other, &db}) {
      bytes[threads - 1].push_back(read_bytes(*tensor, stream));
    }
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

}  // namespace
}  // namespace longhaul::runtime::ops
