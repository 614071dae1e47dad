// Gates, time steps and the normaliser against definitions in double; backwards against central
// differences of those definitions.
#include "attention/gates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/normaliser.h"
#include "attention/time_step.h"
#include "tests/support/differences.h"
#include "tests/support/expect_error.h"
#include "tests/support/host_tensors.h"

namespace longhaul::attention {
namespace {

using runtime::ConstTensorView;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;
using test::make_tensor;
using test::numeric_gradient;
using test::random_values;
using test::read;
using test::read_bytes;
using test::relative_error;
using Values = std::vector<double>;
using Bytes = std::vector<std::vector<std::byte>>;

constexpr double kFloatBound = 1e-6;
double bound(DType dtype) { return dtype == DType::bfloat16 ? 0x1p-8 : kFloatBound; }
std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

Values scaled(Values values, double factor, double shift = 0) {
  for (double& value : values) value = factor * value + shift;
  return values;
}
Values sum(Values a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

struct GateCase {
  const char* name;
  DecayGate gate;
  bool steps = false;  ///< wanted, and their gradient
  friend void PrintTo(const GateCase& c, std::ostream* out) { *out << c.name; }
};
const GateCase kGates[] = {
    {"softplus", {}},
    {"steps", {}, true},
    {"clamped", {.min_step = 0.3, .max_step = 2.5}, true},
    {"bounded", {.form = DecayForm::bounded, .lower_bound = -5}},
    {"log_sigmoid", {.form = DecayForm::log_sigmoid, .divisor = 16}},
};

struct GateValues {
  Values decay, steps;
};
GateValues gate_reference(const DecayGate& gate, const Values& x, const Values& a_log,
                          const Values& bias, std::int64_t width) {
  GateValues result;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t c = i % bias.size();
    const double u = x[i] + bias[c], rate = std::exp(a_log[c / at(width)]);
    const double step = std::clamp(std::log1p(std::exp(u)), gate.min_step, gate.max_step);
    result.steps.push_back(step);
    switch (gate.form) {
      case DecayForm::softplus:
        result.decay.push_back(-rate * step);
        break;
      case DecayForm::bounded:
        result.decay.push_back(gate.lower_bound / (1 + std::exp(-rate * u)));
        break;
      case DecayForm::log_sigmoid:
        result.decay.push_back(-std::log1p(std::exp(-u)) / gate.divisor);
        break;
    }
  }
  return result;
}

class DecayGates
    : public ::testing::TestWithParam<std::tuple<GateCase, std::int64_t, std::int64_t, DType>> {};
INSTANTIATE_TEST_SUITE_P(Gates, DecayGates,
                         ::testing::Combine(::testing::ValuesIn(kGates),
                                            ::testing::Values(0, 1, 7, 127),
                                            ::testing::Values(1, 7, 31),
                                            ::testing::Values(DType::float32, DType::bfloat16)));

TEST_P(DecayGates, ForwardAndEveryGradient) {
  const auto& [c, rows, width, dtype] = GetParam();
  const std::int64_t heads = 19, columns = heads * width;
  const bool rated = c.gate.form != DecayForm::log_sigmoid, few = rows <= 1;
  const Values x = scaled(random_values(rows * columns, 1, dtype == DType::bfloat16), 4),
               a_log = random_values(heads, 2), bias = random_values(columns, 3),
               ddecay = random_values(rows * columns, 4), dsteps = random_values(rows * columns, 5),
               da_start = random_values(heads, 6), dbias_start = random_values(columns, 7);
  // The loss: both results by their weights.
  const auto loss_of = [&](const Values& of_x, const Values& of_a, const Values& of_bias) {
    GateValues values = gate_reference(c.gate, of_x, of_a, of_bias, width);
    if (c.steps) values.decay.insert(values.decay.end(), values.steps.begin(), values.steps.end());
    return values.decay;
  };
  Values weights = ddecay;
  if (c.steps) weights.insert(weights.end(), dsteps.begin(), dsteps.end());
  const GateValues expected = gate_reference(c.gate, x, a_log, bias, width);
  Values dx, da_log, dbias;
  if (few) {
    dx = numeric_gradient([&](const Values& v) { return loss_of(v, a_log, bias); }, x, weights);
    dbias =
        sum(numeric_gradient([&](const Values& v) { return loss_of(x, a_log, v); }, bias, weights),
            dbias_start);
  }
  if (rated && rows <= 7)
    da_log =
        sum(numeric_gradient([&](const Values& v) { return loss_of(x, v, bias); }, a_log, weights),
            da_start);
  Bytes bytes[2];
  for (const int threads : {1, 2}) {
    const Stream stream = Stream::cpu("gates", threads);
    const Tensor tx = make_tensor(x, {rows, heads, width}, dtype, stream),
                 ta = make_tensor(a_log, {heads}, DType::float32, stream),
                 tb = make_tensor(bias, {heads, width}, DType::float32, stream),
                 tdd = make_tensor(ddecay, {rows, heads, width}, DType::float32, stream),
                 tds = make_tensor(dsteps, {rows, heads, width}, DType::float32, stream),
                 decay({rows, heads, width}, DType::float32, stream),
                 steps({rows, heads, width}, DType::float32, stream),
                 tdx({rows, heads, width}, dtype, stream),
                 tda = make_tensor(da_start, {heads}, DType::float32, stream),
                 tdb = make_tensor(dbias_start, {heads, width}, DType::float32, stream);
    const DecayParameters parameters{rated ? ConstTensorView(ta) : ConstTensorView(), tb};
    decay_gate(c.gate, tx, parameters, decay, c.steps ? steps.view() : TensorView(), stream);
    decay_gate_backward(c.gate, tx, parameters, tdd,
                        c.steps ? ConstTensorView(tds) : ConstTensorView(),
                        {tdx, rated ? tda.view() : TensorView(), tdb}, stream);
    EXPECT_LE(relative_error(read(decay, stream), expected.decay), kFloatBound);
    for (const double value : read(decay, stream)) EXPECT_LE(value, 0);
    if (c.steps) {
      EXPECT_LE(relative_error(read(steps, stream), expected.steps), kFloatBound);
    }
    if (few) {
      EXPECT_LE(relative_error(read(tdx, stream), dx), bound(dtype));
      EXPECT_LE(relative_error(read(tdb, stream), dbias), kFloatBound);
    }
    if (rated && rows <= 7) {
      EXPECT_LE(relative_error(read(tda, stream), da_log), kFloatBound);
    }
    for (const Tensor* tensor : {&decay, &tdx, &tda, &tdb})
      bytes[threads - 1].push_back(read_bytes(*tensor, stream));
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST(DecayGates, ManyRowsAddUp) {
  // Sums over rows are those of the rows alone.
  const Stream stream = Stream::cpu("gates", 2);
  const std::int64_t rows = 127, heads = 5;
  const Values x = scaled(random_values(rows * heads, 1), 4), a_log = random_values(heads, 2),
               bias = random_values(heads, 3), ddecay = random_values(rows * heads, 4);
  Values da(at(heads)), db(at(heads));
  for (std::int64_t i = 0; i < rows * heads; ++i) {
    const std::size_t h = at(i % heads);
    const double u = x[at(i)] + bias[h], rate = std::exp(a_log[h]);
    da[h] -= ddecay[at(i)] * rate * std::log1p(std::exp(u));
    db[h] -= ddecay[at(i)] * rate / (1 + std::exp(-u));
  }
  const Tensor tx = make_tensor(x, {rows, heads, 1}, DType::float32, stream),
               ta = make_tensor(a_log, {heads}, DType::float32, stream),
               tb = make_tensor(bias, {heads, 1}, DType::float32, stream),
               tdd = make_tensor(ddecay, {rows, heads, 1}, DType::float32, stream),
               tdx({rows, heads, 1}, DType::float32, stream),
               tda = make_tensor(Values(at(heads)), {heads}, DType::float32, stream),
               tdb = make_tensor(Values(at(heads)), {heads, 1}, DType::float32, stream);
  decay_gate_backward({}, tx, {ta, tb}, tdd, {}, {tdx, tda, tdb}, stream);
  EXPECT_LE(relative_error(read(tda, stream), da), kFloatBound);
  EXPECT_LE(relative_error(read(tdb, stream), db), kFloatBound);
}

TEST(DecayGates, SaturatedGatesStayFinite) {
  const Stream stream = Stream::cpu("gates", 1);
  const Values x = {-300, -100, 0, 100, 300};
  for (const GateCase& c : kGates) {
    SCOPED_TRACE(c.name);
    const Tensor tx = make_tensor(x, {5, 1, 1}, DType::float32, stream),
                 zero = make_tensor({0}, {1}, DType::float32, stream),
                 bias = make_tensor({0}, {1, 1}, DType::float32, stream),
                 ones = make_tensor(Values(5, 1), {5, 1, 1}, DType::float32, stream),
                 decay({5, 1, 1}, DType::float32, stream), dx({5, 1, 1}, DType::float32, stream),
                 da = make_tensor({0}, {1}, DType::float32, stream),
                 db = make_tensor({0}, {1, 1}, DType::float32, stream);
    const bool rated = c.gate.form != DecayForm::log_sigmoid;
    const DecayParameters parameters{rated ? ConstTensorView(zero) : ConstTensorView(), bias};
    decay_gate(c.gate, tx, parameters, decay, {}, stream);
    decay_gate_backward(c.gate, tx, parameters, ones, {},
                        {dx, rated ? da.view() : TensorView(), db}, stream);
    for (const Tensor* tensor : {&decay, &dx, &da, &db}) {
      for (const double value : read(*tensor, stream)) EXPECT_TRUE(std::isfinite(value));
    }
    EXPECT_LE(relative_error(read(decay, stream), gate_reference(c.gate, x, {0}, {0}, 1).decay),
              kFloatBound);
  }
}

TEST(DecayGates, RefuseWhatHasNoMeaning) {
  const Stream stream = Stream::cpu("gates", 1);
  const Tensor x({2, 3, 1}, DType::float32, stream), a({3}, DType::float32, stream),
      bias({3, 1}, DType::float32, stream), decay({2, 3, 1}, DType::float32, stream);
  const auto refuses = [&](const DecayGate& gate, const char* part) {
    test::expect_error(runtime::ExitCode::internal, part, [&] {
      decay_gate(gate, x, {a, bias}, decay, {}, stream);
    });
  };
  refuses({.form = DecayForm::bounded, .lower_bound = 0.5}, "expected a negative number");
  refuses({.min_step = 2, .max_step = 1}, "0 <= least <= largest");
  refuses({.form = DecayForm::log_sigmoid, .divisor = 0}, "expected a positive number");
}

class Tokens : public ::testing::TestWithParam<std::tuple<std::int64_t, DType>> {
 protected:
  std::int64_t rows() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  Values values(std::int64_t count, unsigned seed) const {
    return random_values(count, seed, dtype() == DType::bfloat16);
  }
};
INSTANTIATE_TEST_SUITE_P(Gates, Tokens,
                         ::testing::Combine(::testing::Values(0, 1, 7, 127, 1000),
                                            ::testing::Values(DType::float32, DType::bfloat16)));

TEST_P(Tokens, BetaGate) {
  const std::int64_t heads = 11;
  const Values x = scaled(values(rows() * heads, 1), 4), dbeta = random_values(rows() * heads, 2);
  for (const double factor : {1.0, 2.0}) {
    Values beta, dx;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double s = 1 / (1 + std::exp(-x[i]));
      beta.push_back(factor * s);
      dx.push_back(dbeta[i] * factor * s * (1 - s));
    }
    Bytes bytes[2];
    for (const int threads : {1, 2}) {
      const Stream stream = Stream::cpu("gates", threads);
      const Tensor tx = make_tensor(x, {rows(), heads}, dtype(), stream),
                   tdb = make_tensor(dbeta, {rows(), heads}, DType::float32, stream),
                   tb({rows(), heads}, DType::float32, stream),
                   tdx({rows(), heads}, dtype(), stream);
      beta_gate(tx, factor, tb, stream);
      beta_gate_backward(tx, factor, tdb, tdx, stream);
      EXPECT_LE(relative_error(read(tb, stream), beta), kFloatBound);
      EXPECT_LE(relative_error(read(tdx, stream), dx), bound(dtype()));
      bytes[threads - 1] = {read_bytes(tb, stream), read_bytes(tdx, stream)};
    }
    EXPECT_EQ(bytes[0], bytes[1]);
  }
}

/// v = dt x and y = o + D x, of o = 0, one behind the other.
Values step_reference(const Values& x, const Values& steps, const Values& skip, std::int64_t dim) {
  Values v, y;
  for (std::size_t i = 0; i < x.size(); ++i) {
    v.push_back(steps[i / at(dim)] * x[i]);
    y.push_back(skip[i / at(dim) % skip.size()] * x[i]);
  }
  v.insert(v.end(), y.begin(), y.end());
  return v;
}

TEST_P(Tokens, TimeStepsAndSkip) {
  const std::int64_t heads = 5, dim = 7, count = rows() * heads * dim;
  const bool few = rows() <= 7;
  const Values x = values(count, 1), steps = scaled(random_values(rows() * heads, 2), 0.5, 0.6),
               skip = random_values(heads, 3), dv = random_values(count, 4), dy = values(count, 5),
               start = random_values(heads, 6), out = random_values(count, 7);
  Values weights = dv;
  weights.insert(weights.end(), dy.begin(), dy.end());
  Values dx, dsteps;
  if (few) {
    dx = numeric_gradient([&](const Values& v) { return step_reference(v, steps, skip, dim); }, x,
                          weights);
    dsteps = numeric_gradient([&](const Values& v) { return step_reference(x, v, skip, dim); },
                              steps, weights);
  }
  const Values dskip =
      sum(numeric_gradient([&](const Values& v) { return step_reference(x, steps, v, dim); }, skip,
                           weights),
          start);
  const Values both = step_reference(x, steps, skip, dim);
  const Values v(both.begin(), both.begin() + count),
      y = sum(Values(both.begin() + count, both.end()), out);
  Bytes bytes[2];
  for (const int threads : {1, 2}) {
    const Stream stream = Stream::cpu("gates", threads);
    // x and its gradient are slices of wider rows.
    const Tensor wide = Tensor({rows(), heads + 2, dim}, dtype(), stream),
                 dwide = Tensor({rows(), heads + 2, dim}, dtype(), stream),
                 packed = make_tensor(x, {rows(), heads, dim}, dtype(), stream),
                 tsteps = make_tensor(steps, {rows(), heads}, DType::float32, stream),
                 tskip = make_tensor(skip, {heads}, DType::float32, stream),
                 tv({rows(), heads, dim}, dtype(), stream),
                 ty = make_tensor(out, {rows(), heads, dim}, DType::float32, stream),
                 tdv = make_tensor(dv, {rows(), heads, dim}, DType::float32, stream),
                 tdy = make_tensor(dy, {rows(), heads, dim}, dtype(), stream),
                 tdx({rows(), heads, dim}, dtype(), stream),
                 tds({rows(), heads}, DType::float32, stream),
                 tdd = make_tensor(start, {heads}, DType::float32, stream);
    const TensorView in = wide.view().slice(1, 1, heads + 1),
                     din = dwide.view().slice(1, 1, heads + 1);
    copy(packed, in, stream);
    scale_by_step(in, tsteps, tv, stream);
    add_skip(in, tskip, ty, stream);
    time_step_backward({in, tsteps, tskip, tdv, tdy}, din, tds, tdd, stream);
    copy(din, tdx, stream);
    EXPECT_LE(relative_error(read(tv, stream), v), bound(dtype()));
    EXPECT_LE(relative_error(read(ty, stream), y), kFloatBound);
    if (few) {
      EXPECT_LE(relative_error(read(tdx, stream), dx), bound(dtype()));
      EXPECT_LE(relative_error(read(tds, stream), dsteps), kFloatBound);
    }
    EXPECT_LE(relative_error(read(tdd, stream), dskip), kFloatBound);
    bytes[threads - 1] = {read_bytes(tv, stream), read_bytes(ty, stream), read_bytes(tdx, stream),
                          read_bytes(tds, stream), read_bytes(tdd, stream)};
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

Values normal_reference(const Values& extended, std::int64_t dim) {
  Values out;
  for (std::size_t i = 0; i < extended.size(); i += at(dim + 1)) {
    for (std::size_t j = i; j < i + at(dim); ++j)
      out.push_back(extended[i + at(dim)] == 0 ? 0 : extended[j] / extended[i + at(dim)]);
  }
  return out;
}

TEST_P(Tokens, Normaliser) {
  const std::int64_t heads = 3, dim = 7, count = rows() * heads * dim;
  const bool few = rows() <= 7;
  const Values v = values(count, 1), dout = values(count, 2);
  Values extended = random_values(rows() * heads * (dim + 1), 3);
  for (std::size_t i = at(dim); i < extended.size(); i += at(dim + 1)) {
    extended[i] += extended[i] < 0 ? -1 : 1;  // either sign, away from 0
    if (i == at(dim)) extended[i] = 0;        // but for the first
  }
  Values expected;
  if (few) {
    expected =
        numeric_gradient([&](const Values& e) { return normal_reference(e, dim); }, extended, dout);
    for (std::size_t i = 0; rows() > 0 && i <= at(dim); ++i) expected[i] = 0;
  }
  Bytes bytes[2];
  for (const int threads : {1, 2}) {
    const Stream stream = Stream::cpu("gates", threads);
    const Tensor tv = make_tensor(v, {rows(), heads, dim}, dtype(), stream),
                 ones({rows(), heads, dim + 1}, dtype(), stream),
                 te = make_tensor(extended, {rows(), heads, dim + 1}, DType::float32, stream),
                 out({rows(), heads, dim}, DType::float32, stream),
                 tdo = make_tensor(dout, {rows(), heads, dim}, DType::float32, stream),
                 tde({rows(), heads, dim + 1}, dtype(), stream);
    append_ones(tv, ones, stream);
    normalise(te, out, stream);
    normalise_backward(te, tdo, tde, stream);
    const Values with_ones = read(ones, stream);
    for (std::size_t i = 0; i < with_ones.size(); ++i) {
      const std::size_t head = i / at(dim + 1), column = i % at(dim + 1);
      EXPECT_EQ(with_ones[i], column == at(dim) ? 1 : v[head * at(dim) + column]);
    }
    EXPECT_LE(relative_error(read(out, stream), normal_reference(extended, dim)), kFloatBound);
    if (few) {
      EXPECT_LE(relative_error(read(tde, stream), expected), bound(dtype()));
    }
    bytes[threads - 1] = {read_bytes(out, stream), read_bytes(tde, stream)};
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

}  // namespace
}  // namespace longhaul::attention
