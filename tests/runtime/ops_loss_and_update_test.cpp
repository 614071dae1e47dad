// Cross entropy, AdamW, the gradient norm, random numbers, and copies from and to the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/ops/adamw.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/ops/host_copy.h"
#include "runtime/ops/random.h"
#include "runtime/ops/softcap.h"
#include "tests/support/host_tensors.h"

namespace longhaul::runtime::ops {
namespace {

using test::make_tensor;
using test::random_values;
using test::read;
using test::read_bytes;
using test::relative_error;
using Values = std::vector<double>;

constexpr double kFloatBound = 3e-6;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

struct LossReference {
  double sum = 0;
  Values rows, dlogits, correct;
};

LossReference loss_reference(const Values& logits, const Values& labels, std::int64_t vocabulary,
                             double scale) {
  LossReference result;
  for (std::size_t row = 0; row < labels.size(); ++row) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(row) * vocabulary;
    const double maximum = *std::max_element(begin, begin + vocabulary);
    double total = 0;
    for (std::int64_t i = 0; i < vocabulary; ++i) total += std::exp(begin[i] - maximum);
    const bool real = labels[row] >= 0;
    const auto label = static_cast<std::int64_t>(labels[row]);
    const double loss = real ? std::log(total) + maximum - begin[label] : 0;
    result.sum += loss;
    result.rows.push_back(loss);
    result.correct.push_back(real && begin[label] == maximum ? 1 : 0);
    for (std::int64_t i = 0; i < vocabulary; ++i) {
      const double probability = std::exp(begin[i] - maximum) / total;
      result.dlogits.push_back(real ? scale * (probability - (i == label ? 1 : 0)) : 0);
    }
  }
  return result;
}

TEST(CrossEntropy, LossAndGradient) {
  const double scale = 1.0 / 77;
  for (const double cap : {0.0, 15.0}) {
    for (const std::int64_t rows : {0, 1, 7, 127}) {
      for (const std::int64_t vocabulary : {1, 2, 263}) {
        SCOPED_TRACE(concat("rows ", rows, " V ", vocabulary, " cap ", cap));
        Values logits = random_values(rows * vocabulary, 1), labels;
        for (double& logit : logits) logit *= 20;
        Values capped = logits;
        for (double& logit : capped) logit = cap > 0 ? cap * std::tanh(logit / cap) : logit;
        for (std::int64_t row = 0; row < rows; ++row)
          labels.push_back(static_cast<double>((row * 31) % (vocabulary + 1) - 1));
        LossReference expected = loss_reference(capped, labels, vocabulary, scale);
        for (std::size_t i = 0; cap > 0 && i < logits.size(); ++i)
          expected.dlogits[i] /= std::pow(std::cosh(logits[i] / cap), 2);
        std::vector<std::byte> bytes[2];
        for (const int threads : {1, 2}) {
          const Stream stream = Stream::cpu("ops", threads);
          const Tensor tl = make_tensor(logits, {rows, vocabulary}, DType::float32, stream);
          const Tensor ids = make_tensor(labels, {rows}, DType::int32, stream);
          const Tensor sum = make_tensor({100}, {1}, DType::float64, stream);  // is added to
          const Tensor forward_sum = make_tensor({0}, {1}, DType::float64, stream);
          const Tensor row_loss({rows}, DType::float32, stream),
              correct({rows}, DType::uint8, stream);
          if (cap > 0) softcap(tl, cap, stream);
          cross_entropy(tl, {ids}, forward_sum, row_loss, correct, stream);
          cross_entropy_backward(tl, {ids}, {scale, DType::float32, cap}, sum, stream);
          EXPECT_LE(relative_error(read(tl, stream), expected.dlogits), kFloatBound);
          EXPECT_NEAR(read(sum, stream)[0] - 100, expected.sum, kFloatBound * (1 + expected.sum));
          EXPECT_NEAR(read(forward_sum, stream)[0], expected.sum, kFloatBound * (1 + expected.sum));
          EXPECT_LE(relative_error(read(row_loss, stream), expected.rows), kFloatBound);
          EXPECT_EQ(read(correct, stream), expected.correct);
          bytes[threads - 1] = read_bytes(tl, stream);
        }
        EXPECT_EQ(bytes[0], bytes[1]);
      }
    }
  }
}

TEST(CrossEntropy, TheGradientIsRoundedInPlace) {
  for (const std::int64_t rows : {0, 1, 41}) {
    for (const std::int64_t vocabulary : {1, 7, 255, 256, 257, 1031}) {
      SCOPED_TRACE(concat("rows ", rows, " V ", vocabulary));
      Values logits = random_values(rows * vocabulary, 1), labels, weights;
      for (std::int64_t row = 0; row < rows; ++row) {
        labels.push_back(static_cast<double>((row * 31) % (vocabulary + 1) - 1));
        weights.push_back(std::vector{1.0, 0.0, 3.5}[at(row % 3)]);
      }
      const Stream stream = Stream::cpu("ops", 2);
      const Tensor ids = make_tensor(labels, {rows}, DType::int32, stream),
                   w = make_tensor(weights, {rows}, DType::float32, stream),
                   wide = make_tensor(logits, {rows, vocabulary}, DType::float32, stream),
                   narrow = make_tensor(logits, {rows, vocabulary}, DType::float32, stream),
                   wide_sum = make_tensor({0}, {1}, DType::float64, stream),
                   narrow_sum = make_tensor({0}, {1}, DType::float64, stream);
      cross_entropy_backward(wide, {ids, w}, {0.01, DType::float32}, wide_sum, stream);
      const TensorView gradient =
          cross_entropy_backward(narrow, {ids, w}, {0.01, DType::bfloat16}, narrow_sum, stream);
      EXPECT_EQ(read_bytes(wide_sum, stream), read_bytes(narrow_sum, stream));
      EXPECT_EQ(gradient.dtype(), DType::bfloat16);
      for (std::int64_t row = 0; row < rows; ++row) {
        const ConstTensorView exact = wide.view().slice(0, row, row + 1);
        // make_tensor rounds on the host: once, to nearest even.
        EXPECT_EQ(
            read_bytes(gradient.slice(0, row, row + 1), stream),
            read_bytes(make_tensor(read(exact, stream), {1, vocabulary}, DType::bfloat16, stream),
                       stream))
            << row;
      }
    }
  }
}

TEST(CrossEntropy, TheGradientIsAnActivation) {
  const Stream stream = Stream::cpu("ops");
  const Tensor logits = make_tensor({0, 0}, {1, 2}, DType::float32, stream),
               ids = make_tensor({1}, {1}, DType::int32, stream),
               sum = make_tensor({0}, {1}, DType::float64, stream);
  EXPECT_THROW(cross_entropy_backward(logits, {ids}, {1, DType::float64}, sum, stream), Error);
}

TEST(CrossEntropy, LabelsWeigh) {
  const Stream stream = Stream::cpu("ops", 2);
  const std::int64_t rows = 127, vocabulary = 19;
  const double scale = 1.0 / 77;
  Values logits = random_values(rows * vocabulary, 1), labels, weights;
  for (std::int64_t row = 0; row < rows; ++row) {
    labels.push_back(static_cast<double>((row * 31) % (vocabulary + 1) - 1));
    weights.push_back(std::vector{0.0, 1.0, 0.25, 255.0, 1e-30}[at(row % 5)]);
  }
  LossReference expected = loss_reference(logits, labels, vocabulary, scale);
  double sum = 0;
  for (std::size_t row = 0; row < labels.size(); ++row) {
    sum += weights[row] * expected.rows[row];
    for (std::int64_t i = 0; i < vocabulary; ++i)
      expected.dlogits[row * at(vocabulary) + at(i)] *= weights[row];
    if (weights[row] > 0) continue;  // as if it had no label: whatever its logits are
    expected.rows[row] = expected.correct[row] = 0;
    logits[row * at(vocabulary)] = std::nan("");
  }
  const Tensor tl = make_tensor(logits, {rows, vocabulary}, DType::float32, stream);
  const Tensor ids = make_tensor(labels, {rows}, DType::int32, stream);
  const Tensor w = make_tensor(weights, {rows}, DType::float32, stream);
  const Tensor forward = make_tensor({0}, {1}, DType::float64, stream),
               backward = make_tensor({100}, {1}, DType::float64, stream);
  const Tensor row_loss({rows}, DType::float32, stream), correct({rows}, DType::uint8, stream);
  cross_entropy(tl, {ids, w}, forward, row_loss, correct, stream);
  for (std::int64_t begin = 0; begin < rows; begin += 40) {
    const std::int64_t end = std::min(rows, begin + 40);
    cross_entropy_backward(tl.view().slice(0, begin, end), ops::Labels{ids, w}.slice(begin, end),
                           {scale, DType::float32}, backward, stream);
  }
  EXPECT_NEAR(read(forward, stream)[0], sum, kFloatBound * sum);
  EXPECT_NEAR(read(backward, stream)[0] - 100, sum, kFloatBound * sum);
  EXPECT_LE(relative_error(read(row_loss, stream), expected.rows), kFloatBound);
  EXPECT_EQ(read(correct, stream), expected.correct);
  EXPECT_LE(relative_error(read(tl, stream), expected.dlogits), kFloatBound);
}

TEST(CrossEntropy, WeightsOfOneAreNone) {
  const Stream stream = Stream::cpu("ops");
  const std::int64_t rows = 101, vocabulary = 19;
  Values labels;
  for (std::int64_t row = 0; row < rows; ++row)
    labels.push_back(static_cast<double>((row * 31) % (vocabulary + 1) - 1));
  const Tensor ids = make_tensor(labels, {rows}, DType::int32, stream),
               ones = make_tensor(Values(rows, 1.0), {rows}, DType::float32, stream);
  std::vector<std::byte> bytes[2], sums[2];
  for (const std::size_t weighed : {0u, 1u}) {
    const Tensor logits = make_tensor(random_values(rows * vocabulary, 3), {rows, vocabulary},
                                      DType::float32, stream);
    const Tensor sum = make_tensor({0}, {1}, DType::float64, stream);
    cross_entropy_backward(logits, weighed != 0 ? ops::Labels{ids, ones} : ops::Labels{ids},
                           {0.01, DType::float32}, sum, stream);
    bytes[weighed] = read_bytes(logits, stream);
    sums[weighed] = read_bytes(sum, stream);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
  EXPECT_EQ(sums[0], sums[1]);
}

TEST(CrossEntropy, NamesAWeightThatIsNone) {
  for (const double bad : {-1.0, -1e-30, double{INFINITY}, std::nan("")}) {
    const Stream stream = Stream::cpu("ops");
    const Tensor logits = make_tensor({0, 0, 0, 0}, {2, 2}, DType::float32, stream);
    const Tensor ids = make_tensor({1, 0}, {2}, DType::int32, stream),
                 weights = make_tensor({1, bad}, {2}, DType::float32, stream),
                 sum = make_tensor({0}, {1}, DType::float64, stream);
    cross_entropy_backward(logits, {ids, weights}, {1, DType::float32}, sum, stream);
    try {
      stream.synchronize(deadline_in(10));
      FAIL() << "weight " << bad << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::data);
      EXPECT_NE(std::string(error.what()).find("in row 1"), std::string::npos) << error.what();
    }
  }
}

TEST(CrossEntropy, ChunksGiveTheSameSum) {
  const Stream stream = Stream::cpu("ops", 2);
  const std::int64_t rows = 101, vocabulary = 19;
  const Values logits = random_values(rows * vocabulary, 1);
  Values labels;
  for (std::int64_t row = 0; row < rows; ++row)
    labels.push_back(static_cast<double>(row % vocabulary));
  const Tensor ids = make_tensor(labels, {rows}, DType::int32, stream);
  std::vector<Values> sums;
  for (const std::int64_t chunk : {1, 7, 101}) {
    const Tensor tl = make_tensor(logits, {rows, vocabulary}, DType::float32, stream);
    const Tensor sum = make_tensor({0}, {1}, DType::float64, stream);
    for (std::int64_t begin = 0; begin < rows; begin += chunk) {
      const std::int64_t end = std::min(rows, begin + chunk);
      cross_entropy_backward(tl.view().slice(0, begin, end), {ids.view().slice(0, begin, end)},
                             {1, DType::float32}, sum, stream);
    }
    sums.push_back(read(sum, stream));
  }
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(sums[0], sums[2]);
}

TEST(CrossEntropy, LargeLogitsAndConfidentRows) {
  const Stream stream = Stream::cpu("ops");
  const Tensor logits = make_tensor({1e4, -1e4, 30, 0, 0, 1e4}, {3, 2}, DType::float32, stream);
  const Tensor ids = make_tensor({0, 0, 0}, {3}, DType::int32, stream),
               sum = make_tensor({0}, {1}, DType::float64, stream);
  cross_entropy_backward(logits, {ids}, {1, DType::float32}, sum, stream);
  const double confident = std::log1p(std::exp(-30.0));
  EXPECT_NEAR(read(sum, stream)[0], confident + 1e4, 1e-5 * 1e4);
  const Values gradient = read(logits, stream);
  // One rounding of the double sum 1 + e^-30; p - 1 in fp32 would keep no digit of it.
  EXPECT_NEAR(gradient[2], -std::exp(-30.0), 0x1p-53 + 1e-6 * std::exp(-30.0));
  EXPECT_EQ(gradient[4], -1);
  EXPECT_EQ(gradient[5], 1);
}

TEST(CrossEntropy, NamesALabelOutsideTheVocabulary) {
  for (const double bad : {2.0, -2.0}) {
    const Stream stream = Stream::cpu("ops");
    const Tensor logits = make_tensor({0, 0, 0, 0}, {2, 2}, DType::float32, stream);
    const Tensor ids = make_tensor({1, bad}, {2}, DType::int32, stream),
                 sum = make_tensor({0}, {1}, DType::float64, stream);
    cross_entropy_backward(logits, {ids}, {1, DType::float32}, sum, stream);
    try {
      stream.synchronize(deadline_in(10));
      FAIL() << "label " << bad << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::data);
      EXPECT_NE(std::string(error.what()).find("in row 1"), std::string::npos) << error.what();
    }
  }
}

/// The nearest values with 8 significant bits, ties to even.
Values to_bfloat16(const Values& values) {
  Values rounded;
  for (const double value : values) {
    int exponent = 0;
    const double fraction = std::frexp(value, &exponent);
    rounded.push_back(std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8));
  }
  return rounded;
}

TEST(AdamWOp, MatchesTheDefinitionOverSteps) {
  const std::int64_t n = 40001;
  const AdamWFactors base{1e-2, 0.9, 0.95, 1e-8, 0.1, 1};
  const Values start = random_values(n, 1);
  Values value = start, first(at(n)), second(at(n));
  const Stream one = Stream::cpu("one", 1), two = Stream::cpu("two", 2);
  std::vector<std::byte> bytes[2];
  for (const Stream& stream : {one, two}) {
    const Tensor w = make_tensor(start, {n}, DType::float32, stream),
                 factor = make_tensor({0.5}, {1}, DType::float64, stream);
    const Tensor m = make_tensor(Values(at(n)), {n}, DType::float32, stream),
                 v = make_tensor(Values(at(n)), {n}, DType::float32, stream),
                 copy({n}, DType::bfloat16, stream);
    for (int step = 1; step <= 3; ++step) {
      AdamWFactors factors = base;
      factors.step = step;
      const Values gradient = random_values(n, static_cast<unsigned>(10 + step));
      const Tensor g = make_tensor(gradient, {n}, DType::float32, stream);
      adamw(factors, g, factor, {w, m, v, copy}, stream);
      for (std::size_t i = 0; i < value.size() && stream.threads() == 1; ++i) {
        const double slope = gradient[i] * 0.5;
        first[i] = 0.9 * first[i] + 0.1 * slope;
        second[i] = 0.95 * second[i] + 0.05 * slope * slope;
        const double m_hat = first[i] / (1 - std::pow(0.9, step)),
                     v_hat = second[i] / (1 - std::pow(0.95, step));
        value[i] -= 1e-2 * (0.1 * value[i] + m_hat / (std::sqrt(v_hat) + 1e-8));
      }
    }
    EXPECT_LE(relative_error(read(w, stream), value), kFloatBound);
    EXPECT_LE(relative_error(read(m, stream), first), kFloatBound);
    EXPECT_LE(relative_error(read(v, stream), second), kFloatBound);
    EXPECT_EQ(read(copy, stream), to_bfloat16(read(w, stream)));
    bytes[stream.threads() - 1] = read_bytes(w, stream);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST(AdamWOp, AFactorThatIsNotFiniteUpdatesNothing) {
  const Stream stream = Stream::cpu("ops");
  const std::int64_t n = 127;
  const Values gradient = random_values(n, 1),
               start[] = {random_values(n, 2), random_values(n, 3), Values(at(n), 0.5)};
  for (const double bad : {std::nan(""), double{INFINITY}}) {
    const Tensor g = make_tensor(gradient, {n}, DType::float32, stream),
                 factor = make_tensor({bad}, {1}, DType::float64, stream),
                 w = make_tensor(start[0], {n}, DType::float32, stream),
                 m = make_tensor(start[1], {n}, DType::float32, stream),
                 v = make_tensor(start[2], {n}, DType::float32, stream);
    const Tensor copy = make_tensor(Values(at(n), 7), {n}, DType::bfloat16, stream);
    adamw({1e-2, 0.9, 0.95, 1e-8, 0.1, 1}, g, factor, {w, m, v, copy}, stream);
    EXPECT_EQ(read(copy, stream), Values(at(n), 7));
    EXPECT_EQ(read(w, stream), start[0]);
    EXPECT_EQ(read(m, stream), start[1]);
    EXPECT_EQ(read(v, stream), start[2]);
  }
}

TEST(AdamWOp, RefusesTensorsThatDoNotFit) {
  const Stream stream = Stream::cpu("ops");
  const auto zeros = [&](std::int64_t n, DType dtype = DType::float32) {
    return make_tensor(Values(at(n)), {n}, dtype, stream);
  };
  const Tensor f = zeros(1, DType::float64), a = zeros(7), b = zeros(7), c = zeros(7), d = zeros(7),
               other = zeros(8), narrow = zeros(7, DType::bfloat16),
               other_narrow = zeros(8, DType::bfloat16);
  const AdamWFactors factors;
  EXPECT_NO_THROW(adamw(factors, a, f, {b, c, d, narrow}, stream));
  EXPECT_THROW(adamw(factors, other, f, {b, c, d}, stream), Error);
  EXPECT_THROW(adamw(factors, narrow, f, {b, c, d}, stream), Error);
  EXPECT_THROW(adamw(factors, a, f, {b, other, d}, stream), Error);
  EXPECT_THROW(adamw(factors, a, f, {b, c, narrow}, stream), Error);
  EXPECT_THROW(adamw(factors, a, f, {b, c, d, other_narrow}, stream), Error);
  EXPECT_THROW(adamw(factors, a, f, {b, c, d, other}, stream), Error);
  EXPECT_THROW(adamw(factors, a, a, {b, c, d}, stream), Error);
}

TEST(GradientNorm, IsThreadIndependentAndAccurate) {
  for (const std::int64_t n : {0, 1, 7, 16384, 100003}) {
    SCOPED_TRACE(n);
    const Values values = random_values(n, 1);
    double expected = 0;
    for (const double value : values) expected += value * value;
    std::vector<std::byte> bytes[2];
    for (const int threads : {1, 2}) {
      const Stream stream = Stream::cpu("ops", threads);
      const Tensor t = make_tensor(values, {n}, DType::float32, stream),
                   sums({norm_chunks(n)}, DType::float64, stream),
                   norm({1}, DType::float64, stream);
      squares_by_chunk(t, sums, stream);
      norm_of_chunks(sums, norm, stream);
      EXPECT_NEAR(read(norm, stream)[0], std::sqrt(expected), 1e-12 * std::sqrt(expected));
      bytes[threads - 1] = read_bytes(norm, stream);
    }
    EXPECT_EQ(bytes[0], bytes[1]);
  }
}

TEST(GradientNorm, ChunksSummedApartGiveTheSameBits) {
  const Stream stream = Stream::cpu("ops", 2);
  const std::int64_t n = 5 * kNormChunk + 127;
  const Tensor values = make_tensor(random_values(n, 1), {n}, DType::float32, stream),
               whole({norm_chunks(n)}, DType::float64, stream),
               pieces({norm_chunks(n)}, DType::float64, stream);
  squares_by_chunk(values, whole, stream);
  // Three owners: two chunks, none, the rest.
  const std::int64_t cuts[] = {0, 2 * kNormChunk, 2 * kNormChunk, n};
  for (int owner = 0; owner < 3; ++owner) {
    const std::int64_t begin = cuts[owner], end = cuts[owner + 1];
    squares_by_chunk(values.view().slice(0, begin, end),
                     pieces.view().slice(0, norm_chunks(begin), norm_chunks(end)), stream);
  }
  EXPECT_EQ(read_bytes(whole, stream), read_bytes(pieces, stream));
}

TEST(GradientNorm, ClipFactor) {
  const Stream stream = Stream::cpu("ops");
  struct Case {
    double norm, max_norm, expected;
  };
  for (const auto& [norm, max_norm, expected] :
       {Case{4, 1, 0.25}, Case{0.5, 1, 1}, Case{1, 1, 1}, Case{4, 0, 1}, Case{0, 1, 1}}) {
    const Tensor value = make_tensor({norm}, {1}, DType::float64, stream),
                 factor({1}, DType::float64, stream);
    clip_factor(value, max_norm, 1, factor, stream);
    EXPECT_EQ(read(factor, stream)[0], expected) << norm << " clipped to " << max_norm;
  }
}

TEST(HostCopy, GoesThereAndBackInTheStreamsOrder) {
  const Stream stream = Stream::cpu("ops");
  for (const std::int64_t n : {0, 1, 7, 1009}) {
    std::vector<std::int32_t> values(at(n)), others(at(n), -1);
    std::iota(values.begin(), values.end(), 5);
    const Tensor tensor({n}, DType::int32, stream);
    upload(values, tensor, stream);
    const auto first = download<std::int32_t>(tensor, stream);
    upload(others, tensor, stream);  // after the first was read
    const auto second = download<std::int32_t>(tensor, stream);
    stream.synchronize(deadline_in(10));
    EXPECT_EQ(*first, values);
    EXPECT_EQ(*second, others);
  }
  const Tensor tensor({3}, DType::float32, stream);
  EXPECT_THROW(upload(std::vector<float>(2), tensor, stream), Error);
  EXPECT_THROW(upload(std::vector<double>(3), tensor, stream), Error);
  EXPECT_THROW(static_cast<void>(download<double>(tensor, stream)), Error);
}

TEST(Random, DoesNotDependOnChunking) {
  const Stream one = Stream::cpu("one", 1), two = Stream::cpu("two", 2);
  const std::int64_t n = 1003;
  const RandomKey key{42, 0x123456789abcdefu};
  const Tensor whole({n}, DType::float32, one), pieces({n}, DType::float32, two);
  fill_normal(whole, 1, 2, key, 5, one);
  for (std::int64_t begin = 0; begin < n; begin += 13) {
    const std::int64_t end = std::min(n, begin + 13);
    fill_normal(pieces.view().slice(0, begin, end), 1, 2, key, 5 + begin, two);
  }
  EXPECT_EQ(read_bytes(whole, one), read_bytes(pieces, two));
}

TEST(Random, KeysAndStreamsDiffer) {
  const Stream stream = Stream::cpu("ops");
  const Tensor a({64}, DType::float32, stream), b({64}, DType::float32, stream),
      c({64}, DType::float32, stream);
  fill_normal(a, 0, 1, {1, 7}, 0, stream);
  fill_normal(b, 0, 1, {2, 7}, 0, stream);
  fill_normal(c, 0, 1, {1, 8}, 0, stream);
  EXPECT_NE(read(a, stream), read(b, stream));
  EXPECT_NE(read(a, stream), read(c, stream));
}

TEST(Random, Moments) {
  // Standard errors of mean, variance and fourth moment over n draws; five of them bound a fixed
  // seed safely.
  const Stream stream = Stream::cpu("ops", 2);
  const std::int64_t n = 200000;
  const double root = std::sqrt(static_cast<double>(n));
  const Tensor normal({n}, DType::float32, stream);
  fill_normal(normal, 0, 1, {3, 1}, 0, stream);
  double mean = 0, square = 0, fourth = 0, neighbours = 0;
  const Values x = read(normal, stream);
  for (std::size_t i = 0; i < x.size(); ++i) {
    mean += x[i];
    square += x[i] * x[i];
    fourth += x[i] * x[i] * x[i] * x[i];
    if (i > 0) neighbours += x[i] * x[i - 1];
  }
  const auto count = static_cast<double>(n);
  EXPECT_LE(std::abs(mean / count), 5 / root);
  EXPECT_LE(std::abs(square / count - 1), 5 * std::sqrt(2.0) / root);
  EXPECT_LE(std::abs(fourth / count - 3), 5 * std::sqrt(96.0) / root);
  EXPECT_LE(std::abs(neighbours / count), 5 / root);
}

TEST(Random, UniformNumbersAreWhatNormalsAreMadeOf) {
  const Stream stream = Stream::cpu("ops", 1);
  const RandomKey key{42, 0x123456789abcdefu};
  const std::vector<double> u = uniforms(1003, key);
  const Tensor normal({1003}, DType::float32, stream);
  fill_normal(normal, 0, 1, key, 0, stream);
  const Values x = read(normal, stream);
  double mean = 0, square = 0;
  for (std::size_t i = 0; i + 1 < u.size(); i += 2) {
    const double radius = std::sqrt(-2 * std::log(u[i])), angle = 2 * std::acos(-1.0) * u[i + 1];
    EXPECT_NEAR(x[i], radius * std::cos(angle), 1e-6);
    EXPECT_NEAR(x[i + 1], radius * std::sin(angle), 1e-6);
    mean += u[i] + u[i + 1];
    square += u[i] * u[i] + u[i + 1] * u[i + 1];
  }
  EXPECT_NEAR(mean / 1002, 0.5, 5 * std::sqrt(1.0 / 12 / 1002));
  EXPECT_NEAR(square / 1002, 1.0 / 3, 5 * std::sqrt(4.0 / 45 / 1002));
  EXPECT_EQ(uniforms(0, key), std::vector<double>());
  EXPECT_EQ(uniforms(7, key), std::vector<double>(u.begin(), u.begin() + 7));
}

}  // namespace
}  // namespace longhaul::runtime::ops
