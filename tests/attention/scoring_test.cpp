// Softcap, sigmoid, sinks and masks of each head: the CPU kernels against the dense references.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "attention/block.h"
#include "runtime/error.h"
#include "tests/support/attention_case.h"
#include "tests/support/attention_kinds.h"
#include "tests/support/random_masks.h"

namespace longhaul::attention {
namespace {

using runtime::concat;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Error;
using runtime::Stream;
using runtime::Tensor;
using runtime::TensorView;
using test::AttentionCase;
using test::AttentionResult;
using test::band_kinds;
using test::expect_matches_reference;
using test::NamedScoring;
using test::run_kernel;
using test::scoring_kinds;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

AttentionCase make(std::int64_t q_rows, std::int64_t k_rows, std::int64_t heads,
                   std::int64_t kv_heads, std::int64_t dim, std::int64_t value_dim,
                   std::vector<Slice> bands, const NamedScoring& scoring, bool bf16 = false) {
  AttentionCase c{q_rows, k_rows, heads, kv_heads, dim, value_dim, std::move(bands)};
  c.bf16 = bf16;
  c.fill(5);
  scoring.apply(c);
  return c;
}

TEST(Scoring, DimsGroupsAndDtypes) {
  for (const auto& scoring : scoring_kinds()) {
    for (const std::int64_t kv_heads : {4, 2, 1}) {
      for (const auto& [dim, value_dim] :
           std::vector<std::pair<int, int>>{{24, 40}, {192, 128}, {16, 16}, {1, 7}, {64, 1}}) {
        for (const bool bf16 : {false, true}) {
          SCOPED_TRACE(concat(scoring.name, " kv heads ", kv_heads, " dims ", dim, "/", value_dim,
                              bf16 ? " bf16" : ""));
          const auto c = make(53, 97, 4, kv_heads, dim, value_dim,
                              {{0, 53, 0, 97, -kUnbounded, 44}}, scoring, bf16);
          expect_matches_reference(c, run_kernel(c));
          if (kv_heads == 2) expect_matches_reference(c, run_kernel(c, {.key_cuts = {1, 60}}));
        }
      }
    }
  }
}

TEST(Scoring, EveryKindOfBandWholeAndInParts) {
  for (const auto& scoring : scoring_kinds()) {
    for (const auto& [name, bands] : band_kinds(125, 430)) {
      SCOPED_TRACE(concat(scoring.name, ", ", name));
      const auto c = make(125, 430, 2, 1, 20, 12, bands, scoring);
      expect_matches_reference(c, run_kernel(c));
      expect_matches_reference(c, run_kernel(c, {.key_cuts = {0, 100, 101, 390}}));
    }
  }
}

TEST(Scoring, RandomBandsAndSizes) {
  std::mt19937 random(9);
  const auto kinds = scoring_kinds();
  for (std::uint32_t round = 0; round < 120; ++round) {
    const std::int64_t q_rows = random() % 120, k_rows = random() % (round % 4 == 0 ? 900 : 120);
    const auto& scoring = kinds[round % kinds.size()];
    SCOPED_TRACE(concat(round, " ", scoring.name));
    std::vector<Slice> bands;
    if (q_rows > 0 && k_rows > 0)
      bands =
          test::random_disjoint_slices(q_rows, k_rows, 1 + static_cast<int>(random() % 6), random);
    const auto c = make(q_rows, k_rows, 2, 1, 8, 8, bands, scoring);
    expect_matches_reference(c, run_kernel(c));
    expect_matches_reference(c, run_kernel(c, {.key_cuts = {k_rows / 3, 3 * k_rows / 4}}));
  }
}

TEST(Scoring, EachHeadItsOwnMask) {
  for (const auto& scoring : scoring_kinds()) {
    for (const std::int64_t kv_heads : {6, 2, 1}) {
      SCOPED_TRACE(concat(scoring.name, " kv heads ", kv_heads));
      auto c = make(90, 90, 6, kv_heads, 12, 20, {}, scoring);
      // S2-Attention's shards would be such; one head sees nothing.
      c.head_bands = {{{0, 90, 0, 90, -kUnbounded, 0}},
                      {{0, 40, 0, 40}, {40, 90, 40, 90}},
                      {},
                      {{0, 90, 0, 90, -7, 7}},
                      {{0, 90, 0, 90, -7, 7}},
                      {{10, 80, 0, 90, 2, kUnbounded}}};
      expect_matches_reference(c, run_kernel(c));
      expect_matches_reference(c, run_kernel(c, {.key_cuts = {31}}));
    }
  }
}

TEST(Sigmoid, PartialsPlainlyAdd) {
  auto c = make(100, 150, 2, 1, 20, 24, {{0, 100, 0, 150, -kUnbounded, 40}}, scoring_kinds()[4]);
  const auto both = run_kernel(c, {.key_cuts = {70}});
  const auto part = [&](std::int64_t begin, std::int64_t end) {
    AttentionCase half = c;
    half.k_rows = end - begin;
    const auto rows = [&](std::vector<float>& x, std::int64_t width) {
      x = {x.begin() + begin * width, x.begin() + end * width};
    };
    rows(half.k, c.dim);
    rows(half.v, c.value_dim);
    half.bands = {{0, 100, 0, end - begin, -kUnbounded, 40 - begin}};
    return run_kernel(half);
  };
  const auto first = part(0, 70), second = part(70, 150);
  for (std::size_t i = 0; i < both.out.size(); ++i)
    ASSERT_EQ(both.out[i], first.out[i] + second.out[i]);
  for (std::size_t i = 0; i < both.dq.size(); ++i)
    ASSERT_EQ(both.dq[i], first.dq[i] + second.dq[i]);
}

TEST(Sigmoid, ByHand) {
  // One query of 2, keys 0.5 and -3, bias 1: sigmoid(2), sigmoid(-5); a third key is masked.
  AttentionCase c{1, 3, 1, 1, 1, 1, {{0, 1, 0, 2}}};
  c.scoring = {.scale = 1, .weighting = Weighting::sigmoid, .bias = 1};
  c.q = {2};
  c.k = {0.5f, -3, 7};
  c.v = {10, 20, 1000};
  c.dout = {3};
  const auto got = run_kernel(c);
  const double a = 1 / (1 + std::exp(-2.0)), b = 1 / (1 + std::exp(5.0));
  EXPECT_FLOAT_EQ(got.out[0], static_cast<float>(10 * a + 20 * b));
  EXPECT_FLOAT_EQ(got.dv[0], static_cast<float>(3 * a));
  EXPECT_FLOAT_EQ(got.dk[0], static_cast<float>(2 * a * (1 - a) * 30));
  EXPECT_NEAR(got.dq[0], 0.5 * a * (1 - a) * 30 - 3 * b * (1 - b) * 60, 1e-6);
  EXPECT_EQ(got.dk[2], 0);
  EXPECT_EQ(got.dv[2], 0);
  EXPECT_TRUE(got.lse.empty());
}

/// out, lse -> out, lse with sinks, of [rows, heads, dim]; and dsinks for some delta.
struct Sunk {
  std::vector<float> out, lse, dsinks;
};
Sunk sunk(std::vector<float> out, const std::vector<float>& high, std::vector<float> sinks,
          std::vector<float> delta, int threads = 1) {
  const auto heads = static_cast<std::int64_t>(sinks.size()),
             rows = static_cast<std::int64_t>(high.size()) / heads,
             dim = static_cast<std::int64_t>(out.size()) / (rows * heads);
  std::vector<float> dsinks(sinks.size(), kNaN);
  test::AttentionResult result{.lse = high, .lse_low = std::vector<float>(high.size())};
  std::vector<float> lse = result.lse_parts();
  const auto view = [](std::vector<float>& x, std::initializer_list<std::int64_t> sizes) {
    return TensorView(reinterpret_cast<std::byte*>(x.data()), DType::float32, {}, sizes);
  };
  const Stream stream = Stream::cpu("sinks", threads);
  apply_sinks(view(out, {rows, heads, dim}), view(lse, {rows, heads, 2}), view(sinks, {heads}),
              stream);
  sinks_backward(view(lse, {rows, heads, 2}), view(delta, {rows, heads}), view(sinks, {heads}),
                 view(dsinks, {heads}), stream);
  stream.synchronize(runtime::deadline_in(10));
  result.set_lse(lse);
  return {out, result.lse, dsinks};
}

TEST(Sinks, ByHandAndAtTheEnds) {
  const std::vector<float> out{3, -1, 3, -1, 3, -1, 3, -1, 0, 0, 0, 0},
      lse{2, 2, 1e4f, -1e4f, -kInfinity, -kInfinity}, delta{5, 7, 1, 1, 0, 0};
  // Rows of two heads: sink 2 and no sink at all.
  const Sunk got = sunk(out, lse, {2, -kInfinity}, delta);
  EXPECT_EQ(got.out, (std::vector<float>{1.5f, -0.5f, 3, -1, 3, -1, 3, -1, 0, 0, 0, 0}));
  EXPECT_FLOAT_EQ(got.lse[0], 2 + std::log(2.0f));
  EXPECT_EQ(std::vector(got.lse.begin() + 1, got.lse.end()),
            (std::vector<float>{2, 1e4f, -1e4f, 2, -kInfinity}));
  EXPECT_FLOAT_EQ(got.dsinks[0], -2.5f);
  EXPECT_EQ(got.dsinks[1], 0);
  // A sink far above takes everything, exactly, even from an out that holds infinity.
  const Sunk all = sunk({kInfinity, 8}, {-5e3f}, {5e3f}, {4});
  EXPECT_EQ(all.out, (std::vector<float>{0, 0}));
  EXPECT_EQ(all.lse[0], 5e3f);
  EXPECT_EQ(all.dsinks[0], -4);
  // A NaN that a row has seen shows.
  EXPECT_TRUE(std::isnan(sunk({1}, {kNaN}, {0}, {0}).out[0]));
}

TEST(Sinks, ThreadsGiveTheSameBitsAndRanksAdd) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-2, 2);
  const auto make = [&](std::size_t size) {
    std::vector<float> x(size);
    for (float& value : x) value = uniform(random);
    return x;
  };
  const std::size_t rows = 1003, heads = 3, dim = 5;
  const auto out = make(rows * heads * dim), lse = make(rows * heads), sinks = make(heads),
             delta = make(rows * heads);
  const Sunk one = sunk(out, lse, sinks, delta);
  for (const int threads : {2, 5}) {
    const Sunk other = sunk(out, lse, sinks, delta, threads);
    EXPECT_TRUE(other.out == one.out && other.lse == one.lse && other.dsinks == one.dsinks);
  }
  const auto tail = [&](const std::vector<float>& x, std::size_t width, bool last) {
    const auto cut = x.begin() + static_cast<std::ptrdiff_t>(400 * heads * width);
    return last ? std::vector(cut, x.end()) : std::vector(x.begin(), cut);
  };
  const Sunk a = sunk(tail(out, dim, false), tail(lse, 1, false), sinks, tail(delta, 1, false)),
             b = sunk(tail(out, dim, true), tail(lse, 1, true), sinks, tail(delta, 1, true));
  for (std::size_t h = 0; h < heads; ++h) {
    EXPECT_NEAR(a.dsinks[h] + b.dsinks[h], one.dsinks[h], 1e-5);
    EXPECT_NE(one.dsinks[h], 0);
  }
}

TEST(Scoring, WrongArgumentsAreRefusedAtTheCall) {
  const Stream stream = Stream::cpu("arguments");
  const auto tensor = [&](std::initializer_list<std::int64_t> sizes) {
    return Tensor(sizes, DType::float32, stream);
  };
  const Tensor q = tensor({4, 2, 8}), k = tensor({5, 2, 8}), out = tensor({4, 2, 8}),
               lse = tensor({4, 2, 2}), delta = tensor({4, 2}), dk = tensor({5, 2, 8}),
               sinks = tensor({2});
  const auto forward = [&](const Scoring& scoring, const TensorView& to_lse) {
    block_forward(q, k, k, {}, scoring, out, to_lse, Mode::write, stream);
  };
  const auto backward = [&](const Scoring& scoring, ConstTensorView row_lse,
                            ConstTensorView row_delta) {
    block_backward({q, k, k, out, row_lse, row_delta}, {}, scoring, out, Mode::write, dk, dk,
                   Mode::write, stream);
  };
  const Scoring sigmoid{.weighting = Weighting::sigmoid, .bias = -2};
  EXPECT_NO_THROW(forward({.softcap = 50}, lse));
  EXPECT_NO_THROW(forward(sigmoid, {}));
  EXPECT_NO_THROW(backward(sigmoid, {}, {}));
  EXPECT_THROW(forward({}, {}), Error);  // softmax without lse
  EXPECT_THROW(forward(sigmoid, lse), Error);
  EXPECT_THROW(backward(sigmoid, lse, {}), Error);
  EXPECT_THROW(backward(sigmoid, {}, delta), Error);
  EXPECT_THROW(backward({}, lse, {}), Error);
  for (const float cap : {-1.0f, -0.5f, kInfinity, kNaN, 1e-40f})
    EXPECT_THROW(forward({.softcap = cap}, lse), Error) << cap;
  EXPECT_THROW(forward({.bias = 1}, lse), Error);
  EXPECT_THROW(forward({.scale = kNaN}, lse), Error);
  for (const float bias : {kInfinity, kNaN})
    EXPECT_THROW(forward({.weighting = Weighting::sigmoid, .bias = bias}, {}), Error);
  EXPECT_THROW(apply_sinks(out, lse, tensor({3}), stream), Error);
  EXPECT_THROW(apply_sinks(out, {}, sinks, stream), Error);
  EXPECT_THROW(sinks_backward(lse, delta, sinks, tensor({1}), stream), Error);
  EXPECT_THROW(sinks_backward(lse, tensor({5, 2}), sinks, sinks, stream), Error);
  stream.synchronize(runtime::deadline_in(10));
}

}  // namespace
}  // namespace longhaul::attention
