// Cross entropy, the gradient's norm, AdamW and random numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>

#include "runtime/ops/adamw.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/gradient_norm.h"
#include "runtime/ops/random.h"
#include "tests/support/host_tensors.h"
#include "tests/support/ops_cases.h"
#include "tests/support/ops_data.h"

namespace longhaul::test {
namespace {

using namespace runtime;

constexpr double kFloat = 0x1p-24;

struct LossReference {
  double sum = 0;
  Values rows, correct, gradient, gradient_scale;
};
LossReference loss_reference(const Values& logits, const Values& labels, const Values& weights,
                             std::int64_t vocabulary, double scale) {
  LossReference r;
  for (std::size_t row = 0; row < labels.size(); ++row) {
    const double* line = logits.data() + row * at(vocabulary);
    const double weight = labels[row] < 0 ? 0 : weights[row];
    const auto label = static_cast<std::int64_t>(labels[row]);
    const double maximum = *std::max_element(line, line + vocabulary);
    double total = 0;
    for (std::int64_t i = 0; i < vocabulary; ++i) total += std::exp(line[i] - maximum);
    const double loss = weight > 0 ? std::log(total) + maximum - line[label] : 0;
    r.sum += weight * loss;
    r.rows.push_back(loss);
    r.correct.push_back(weight > 0 && std::max_element(line, line + vocabulary) == line + label);
    for (std::int64_t i = 0; i < vocabulary; ++i) {
      const double p = std::exp(line[i] - maximum) / total;
      r.gradient.push_back(weight > 0 ? scale * weight * (i == label ? std::expm1(-loss) : p) : 0);
      // fp32 holds a difference of logits to a rounding, which the exponential multiplies.
      const double distance = std::isfinite(line[i]) ? std::abs(line[i] - maximum) : 0;
      r.gradient_scale.push_back(std::abs(r.gradient.back()) * (1 + distance / 8) + 0x1p-100);
    }
  }
  return r;
}

Placed placed_weights(const std::optional<Values>& weights, std::int64_t rows,
                      const Stream& stream) {
  return weights ? put(*weights, {rows}, DType::float32, stream) : Placed{};
}

/// Rows that may lie apart, one after another.
Values get_rows(ConstTensorView view, const Stream& stream) {
  Values all;
  for (std::int64_t row = 0; row < view.size(0); ++row) {
    const Values values = get(view.slice(0, row, row + 1), stream);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

void expect_losses(std::int64_t rows, std::int64_t vocabulary, std::int64_t offset, bool weighed,
                   DType dtype, const Stream& stream) {
  SCOPED_TRACE(concat(rows, " rows, V ", vocabulary, " offset ", offset, weighed ? " weighed" : "",
                      " gradient in ", name(dtype)));
  const double scale = 1.0 / 77;
  Values logits = random_values(rows * vocabulary, 1), labels;
  std::optional<Values> weights;
  if (weighed) weights.emplace();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = i % 11 == 5 && vocabulary > 2 ? -INFINITY : logits[i] * 16;
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t label = (row * 31) % (vocabulary + 1) - 1;
    double* line = logits.data() + row * vocabulary;
    if (label >= 0 && line[label] == -INFINITY) line[label] = 3;
    if (row % 4 == 1 && label >= 0)
      line[label] = line[row % vocabulary] = 25;  // the largest, twice
    labels.push_back(static_cast<double>(label));
    if (weighed) weights->push_back(std::array{0.0, 1.0, 0.25, 255.0}[at(row % 4)]);
  }
  const LossReference expected =
      loss_reference(logits, labels, weights.value_or(Values(at(rows), 1)), vocabulary, scale);
  for (std::int64_t row = 0; row < rows; ++row) {  // what weighs nothing is not looked at
    if (labels[at(row)] < 0) logits[at(row * vocabulary)] = NAN;
  }
  const Placed ids = put(labels, {rows}, DType::int32, stream),
               tw = placed_weights(weights, rows, stream),
               forward_logits = put(logits, {rows, vocabulary}, DType::float32, stream, offset),
               forward_sum = put({0}, {1}, DType::float64, stream),
               row_loss = put_nothing({rows}, DType::float32, stream),
               correct = put_nothing({rows}, DType::uint8, stream);
  const ops::Labels all{ids, tw.view};
  ops::cross_entropy(forward_logits, all, forward_sum, row_loss, correct, stream);
  EXPECT_NEAR(get(forward_sum, stream)[0], expected.sum, 4 * kFloat * (1 + expected.sum));
  expect_near(get(row_loss, stream), expected.rows, 4 * kFloat);
  EXPECT_EQ(get(correct, stream), expected.correct);
  std::vector<std::uint8_t> sums[2];
  Values gradients[2];
  for (const std::int64_t chunk : {rows, std::int64_t{40}}) {
    const std::size_t which = chunk == rows ? 0 : 1;
    const Placed tl = put(logits, {rows, vocabulary}, DType::float32, stream, offset),
                 sum = put({0}, {1}, DType::float64, stream);
    for (std::int64_t begin = 0; begin < rows; begin += chunk) {
      const std::int64_t end = std::min(rows, begin + chunk);
      const TensorView scores = tl.view.slice(0, begin, end);
      const TensorView gradient =
          ops::cross_entropy_backward(scores, all.slice(begin, end), {scale, dtype}, sum, stream);
      EXPECT_EQ(gradient.data(), scores.data());
      EXPECT_EQ(gradient.stride(0) * size_bytes(dtype), vocabulary * 4);
      const Values of_chunk = get_rows(gradient, stream);
      gradients[which].insert(gradients[which].end(), of_chunk.begin(), of_chunk.end());
    }
    EXPECT_NEAR(get(sum, stream)[0], expected.sum, 4 * kFloat * (1 + expected.sum));
    const double rounding = dtype == DType::float32 ? 0 : unit_roundoff(dtype);
    expect_within(gradients[which], expected.gradient, expected.gradient_scale,
                  16 * kFloat + rounding);
    sums[which] = get_bytes(sum, stream);
    if (rows == 0) break;
  }
  if (rows == 0) return;
  EXPECT_EQ(sums[0], sums[1]) << "differs when rows are cut into chunks";
  EXPECT_EQ(gradients[0], gradients[1]);
}

void cross_entropy(const Stream& stream) {
  for (const bool weighed : {false, true}) {
    for (const auto& [rows, vocabulary, offset] :
         std::vector<std::array<std::int64_t, 3>>{{0, 5, 0},
                                                  {1, 1, 0},
                                                  {7, 2, 0},
                                                  {127, 19, 0},
                                                  {41, 264, 0},
                                                  {41, 264, 1},
                                                  {3, 4099, 0},
                                                  {3, 8192, 0},
                                                  {2, 24840, 0}}) {
      for (const DType dtype : {DType::float32, DType::bfloat16})
        expect_losses(rows, vocabulary, offset, weighed, dtype, stream);
    }
  }
}

/// Logits that a cap has bounded: the gradient is that of what it took.
void capped_logits(const Stream& stream) {
  constexpr double kCap = 2.5, kScale = 1.0 / 7;
  for (const auto& [rows, vocabulary] :
       std::vector<std::array<std::int64_t, 2>>{{1, 1}, {7, 19}, {5, 264}, {2, 5003}}) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      SCOPED_TRACE(concat(rows, " rows, V ", vocabulary, " gradient in ", name(dtype)));
      Values logits, labels;
      for (const double value : random_values(rows * vocabulary, 1))
        logits.push_back(kCap * std::tanh(8 * value / kCap));
      for (std::int64_t row = 0; row < rows; ++row)
        labels.push_back(static_cast<double>((row * 31) % (vocabulary + 1) - (row % 2)));
      for (double& label : labels) label = std::min(label, static_cast<double>(vocabulary - 1));
      LossReference expected =
          loss_reference(logits, labels, Values(at(rows), 1), vocabulary, kScale);
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const double t = logits[i] / kCap;
        expected.gradient[i] *= 1 - t * t;  // of its scale, near the cap, little is left
      }
      const Placed tl = put(logits, {rows, vocabulary}, DType::float32, stream),
                   ids = put(labels, {rows}, DType::int32, stream),
                   sum = put({0}, {1}, DType::float64, stream);
      const Values actual = get_rows(
          ops::cross_entropy_backward(tl, {ids}, {kScale, dtype, kCap}, sum, stream), stream);
      EXPECT_NEAR(get(sum, stream)[0], expected.sum, 4 * kFloat * (1 + expected.sum));
      const double rounding = dtype == DType::float32 ? 0 : unit_roundoff(dtype);
      expect_within(actual, expected.gradient, expected.gradient_scale, 16 * kFloat + rounding);
    }
  }
}

void confident_rows(const Stream& stream) {
  const Placed logits = put({1e4, -1e4, 30, 0, 0, 1e4}, {3, 2}, DType::float32, stream),
               ids = put({0, 0, 0}, {3}, DType::int32, stream),
               sum = put({0}, {1}, DType::float64, stream);
  ops::cross_entropy_backward(logits, {ids}, {1, DType::float32}, sum, stream);
  EXPECT_NEAR(get(sum, stream)[0], std::log1p(std::exp(-30.0)) + 1e4, 1e-5);
  const Values gradient = get(logits, stream);
  // p - 1 in fp32 would keep no digit of it.
  EXPECT_NEAR(gradient[2], -std::exp(-30.0), 0x1p-53 + 1e-6 * std::exp(-30.0));
  EXPECT_EQ(gradient[4], -1);
  EXPECT_EQ(gradient[5], 1);
}

void bad_labels(const Stream& stream) {
  struct Bad {
    double label, weight;
  };
  for (const auto& [label, weight] :
       {Bad{2, 1}, Bad{-2, 1}, Bad{0, -1}, Bad{1, NAN}, Bad{1, INFINITY}}) {
    SCOPED_TRACE(concat("label ", label, " weight ", weight));
    const DType dtype = label < 0 ? DType::bfloat16 : DType::float32;
    const Placed logits = put({0, 0, 0, 0, 1, 2}, {3, 2}, DType::float32, stream),
                 ids = put({1, label, 0}, {3}, DType::int32, stream),
                 weights = put({1, weight, 1}, {3}, DType::float32, stream),
                 sum = put({0}, {1}, DType::float64, stream),
                 forward_sum = put({0}, {1}, DType::float64, stream),
                 row_loss = put_nothing({3}, DType::float32, stream),
                 correct = put_nothing({3}, DType::uint8, stream);
    ops::cross_entropy(logits, {ids, weights}, forward_sum, row_loss, correct, stream);
    const Values gradient = get_rows(
        ops::cross_entropy_backward(logits, {ids, weights}, {1, dtype}, sum, stream), stream);
    const Values losses = get(row_loss, stream);
    EXPECT_TRUE(std::isnan(get(sum, stream)[0]));
    EXPECT_TRUE(std::isnan(get(forward_sum, stream)[0]));
    EXPECT_TRUE(std::isnan(losses[1]));
    EXPECT_TRUE(std::isfinite(losses[0]) && std::isfinite(losses[2]));
    for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(std::isnan(gradient[i]), i / 2 == 1) << i;
  }
  // Logits that are not numbers are no loss either.
  for (const double logit : {double{NAN}, double{INFINITY}}) {
    const Placed logits = put({0, logit, 1}, {1, 3}, DType::float32, stream),
                 ids = put({0}, {1}, DType::int32, stream),
                 sum = put({0}, {1}, DType::float64, stream);
    ops::cross_entropy_backward(logits, {ids}, {1, DType::float32}, sum, stream);
    EXPECT_FALSE(std::isfinite(get(sum, stream)[0])) << logit;
  }
}

void gradient_norm(const Stream& stream) {
  for (const std::int64_t n : {std::int64_t{0}, std::int64_t{1}, std::int64_t{7}, ops::kNormChunk,
                               3 * ops::kNormChunk + 127}) {
    SCOPED_TRACE(n);
    const Values values = random_values(n, 1);
    double expected = 0;
    for (const double value : values) expected += value * value;
    std::vector<std::uint8_t> bytes[2];
    for (const std::int64_t offset : {0, 1}) {
      const Placed t = put(values, {n}, DType::float32, stream, offset),
                   sums = put_nothing({ops::norm_chunks(n)}, DType::float64, stream),
                   norm = put_nothing({1}, DType::float64, stream);
      ops::squares_by_chunk(t, sums, stream);
      ops::norm_of_chunks(sums, norm, stream);
      EXPECT_NEAR(get(norm, stream)[0], std::sqrt(expected), 1e-12 * std::sqrt(expected));
      bytes[at(offset)] = get_bytes(sums, stream);
    }
    EXPECT_EQ(bytes[0], bytes[1]) << "depends on where the chunk lies";
    if (n <= 2 * ops::kNormChunk) continue;
    const Placed t = put(values, {n}, DType::float32, stream),
                 pieces = put_nothing({ops::norm_chunks(n)}, DType::float64, stream);
    const std::int64_t cut = 2 * ops::kNormChunk;
    ops::squares_by_chunk(t.view.slice(0, 0, cut), pieces.view.slice(0, 0, 2), stream);
    ops::squares_by_chunk(t.view.slice(0, cut, n), pieces.view.slice(0, 2, ops::norm_chunks(n)),
                          stream);
    EXPECT_EQ(bytes[0], get_bytes(pieces, stream)) << "depends on who sums a chunk";
  }
  // More chunks than threads.
  const Placed sums = put(Values(1009, 0.25), {1009}, DType::float64, stream),
               norm = put_nothing({1}, DType::float64, stream);
  ops::norm_of_chunks(sums, norm, stream);
  EXPECT_EQ(get(norm, stream)[0], std::sqrt(1009 * 0.25));
}

void clip_factor(const Stream& stream) {
  struct Case {
    double norm, max_norm, expected;
  };
  for (const auto& [norm, max_norm, expected] :
       {Case{4, 1, 0.25}, Case{0.5, 1, 1}, Case{1, 1, 1}, Case{4, 0, 1}, Case{0, 1, 1}}) {
    const Placed value = put({norm}, {1}, DType::float64, stream),
                 factor = put_nothing({1}, DType::float64, stream);
    ops::clip_factor(value, max_norm, 1, factor, stream);
    EXPECT_EQ(get(factor, stream)[0], expected) << norm << " clipped to " << max_norm;
  }
  for (const double norm : {double{NAN}, double{INFINITY}}) {
    const Placed value = put({norm}, {1}, DType::float64, stream),
                 factor = put({1}, {1}, DType::float64, stream);
    ops::clip_factor(value, 1, 1, factor, stream);
    EXPECT_TRUE(std::isnan(get(factor, stream)[0])) << norm;
  }
}

void adamw(const Stream& stream) {
  // Alike, but where the copy is not aligned.
  for (const auto& [n, offset, copy_offset] :
       std::vector<std::array<std::int64_t, 3>>{{0, 0, 0},
                                                {1, 0, 0},
                                                {4, 0, 0},
                                                {7, 0, 0},
                                                {127, 0, 0},
                                                {1000, 1, 1},
                                                {1000, 0, 1},
                                                {5003, 0, 0}}) {
    SCOPED_TRACE(concat(n, " offset ", offset, " of the copy ", copy_offset));
    const Values start = random_values(n, 1);
    Values value = start, first(at(n)), second(at(n));
    const Placed w = put(start, {n}, DType::float32, stream, offset),
                 m = put(first, {n}, DType::float32, stream, offset),
                 v = put(second, {n}, DType::float32, stream, offset),
                 copy = put_nothing({n}, DType::bfloat16, stream, copy_offset),
                 factor = put({0.5}, {1}, DType::float64, stream);
    for (int step = 1; step <= 3; ++step) {
      const Values gradient = random_values(n, static_cast<unsigned>(10 + step));
      const Placed g = put(gradient, {n}, DType::float32, stream, offset);
      ops::AdamWState state{w, m, v};
      if (step != 2) state.rounded = copy;  // it takes every value, whatever it held
      ops::adamw({1e-2, 0.9, 0.95, 1e-8, 0.1, step}, g, factor, state, stream);
      for (std::size_t i = 0; i < value.size(); ++i) {
        const double slope = gradient[i] * 0.5;
        first[i] = 0.9 * first[i] + 0.1 * slope;
        second[i] = 0.95 * second[i] + 0.05 * slope * slope;
        const double m_hat = first[i] / (1 - std::pow(0.9, step)),
                     v_hat = second[i] / (1 - std::pow(0.95, step));
        value[i] -= 1e-2 * (0.1 * value[i] + m_hat / (std::sqrt(v_hat) + 1e-8));
      }
    }
    // Moments are sums of gradients below 1, values move by about lr a step.
    expect_within(get(m, stream), first, Values(at(n), 1), 4 * kFloat);
    expect_within(get(v, stream), second, second, 16 * kFloat);
    expect_within(get(w, stream), value, Values(at(n), 1), 8 * kFloat);
    const Values kept[] = {get(w, stream), get(m, stream), get(v, stream), get(copy, stream)};
    for (std::size_t i = 0; i < kept[0].size(); ++i)
      EXPECT_EQ(kept[3][i], rounded(kept[0][i], DType::bfloat16)) << i;
    for (const double bad : {double{NAN}, double{INFINITY}}) {
      const Placed none = put({bad}, {1}, DType::float64, stream),
                   g = put(random_values(n, 20), {n}, DType::float32, stream, offset);
      ops::adamw({1e-2, 0.9, 0.95, 1e-8, 0.1, 4}, g, none, {w, m, v, copy}, stream);
    }
    EXPECT_EQ(kept[0], get(w, stream));
    EXPECT_EQ(kept[1], get(m, stream));
    EXPECT_EQ(kept[2], get(v, stream));
    EXPECT_EQ(kept[3], get(copy, stream));
  }
}

/// Philox 4x32 with ten rounds, from the paper (Salmon et al. 2011, section 3.3 and table 2).
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::uint32_t k0,
                                    std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0], b = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

void random_numbers(const Stream& stream) {
  const ops::RandomKey key{0x123456789abcdef0u, 0xfedcba9876543210u};
  const double mean = 0.5, stddev = 3;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const std::int64_t first : {std::int64_t{0}, std::int64_t{5}, std::int64_t{40000000007}}) {
      for (const std::int64_t n : {0, 1, 2, 7, 1030}) {
        SCOPED_TRACE(concat(name(dtype), " ", n, " from ", first));
        Values expected;
        for (std::int64_t i = first; i < first + n; ++i) {
          const auto block = static_cast<std::uint64_t>(i / 4);
          const auto bits = philox(
              {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
               static_cast<std::uint32_t>(key.stream_id),
               static_cast<std::uint32_t>(key.stream_id >> 32)},
              static_cast<std::uint32_t>(key.seed), static_cast<std::uint32_t>(key.seed >> 32));
          const std::size_t pair = at(i % 4) / 2 * 2;
          const auto uniform = [](std::uint32_t word) { return (word + 0.5) / 4294967296.0; };
          const double radius = std::sqrt(-2 * std::log(uniform(bits[pair])));
          const double angle = 2 * std::numbers::pi * uniform(bits[pair + 1]);
          expected.push_back(mean +
                             stddev * radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle)));
        }
        const Placed values = put_nothing({n}, dtype, stream, 1);
        ops::fill_normal(values, mean, stddev, key, first, stream);
        expect_near(get(values, stream), expected, unit_roundoff(dtype) + kFloat / 1024);
      }
    }
  }
}

constexpr OpsCase kCases[] = {
    {"CrossEntropy", cross_entropy},
    {"CappedLogits", capped_logits},
    {"ConfidentRows", confident_rows},
    {"BadLabelsBecomeNaN", bad_labels},
    {"GradientNorm", gradient_norm},
    {"ClipFactor", clip_factor},
    {"AdamW", adamw},
    {"RandomNumbers", random_numbers},
};

}  // namespace

std::span<const OpsCase> loss_and_update_cases() { return kCases; }

}  // namespace longhaul::test
