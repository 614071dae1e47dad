// The CPU block kernels against the dense references, and their promises: modes, strides,
// determinism, isolation.
#include "attention/block.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "runtime/error.h"
#include "tests/support/attention_case.h"
#include "tests/support/attention_kinds.h"
#include "tests/support/random_masks.h"

namespace longhaul::attention {
namespace {

using runtime::DType;
using runtime::Error;
using runtime::Stream;
using runtime::Tensor;
using test::AttentionCase;
using test::AttentionResult;
using test::band_kinds;
using test::expect_matches_reference;
using test::KernelOptions;
using test::run_kernel;
using test::TwoDocuments;

AttentionCase make(std::int64_t q_rows, std::int64_t k_rows, std::int64_t heads,
                   std::int64_t kv_heads, std::int64_t dim, std::int64_t value_dim,
                   std::vector<Slice> bands, std::uint32_t seed = 1) {
  AttentionCase c{q_rows, k_rows, heads, kv_heads, dim, value_dim, std::move(bands)};
  c.fill(seed);
  return c;
}

std::vector<Slice> causal(std::int64_t q_rows, std::int64_t k_rows, std::int64_t offset = 0) {
  return {{0, q_rows, 0, k_rows, -kUnbounded, offset}};
}

TEST(Block, LengthsFullAndCausal) {
  for (const std::int64_t q_rows : {0, 1, 7, 127, 1000}) {
    for (const std::int64_t k_rows : {0, 1, 7, 127, 1000}) {
      SCOPED_TRACE(runtime::concat(q_rows, " x ", k_rows));
      for (const auto& bands :
           {std::vector<Slice>{{0, q_rows, 0, k_rows}}, causal(q_rows, k_rows)}) {
        const auto c = make(q_rows, k_rows, 2, 1, 16, 16, bands);
        expect_matches_reference(c, run_kernel(c));
      }
    }
  }
}

TEST(Block, HeadDimsAndGroups) {
  for (const std::int64_t group : {1, 4, 8}) {
    for (const std::int64_t dim : {1, 8, 20, 64, 80, 128}) {
      SCOPED_TRACE(runtime::concat("group ", group, " dim ", dim));
      const auto c = make(101, 203, 2 * group, 2, dim, dim == 64 ? 24 : dim, causal(101, 203, 102));
      expect_matches_reference(c, run_kernel(c));
    }
  }
}

TEST(Block, NoHeadsAndNoDims) {
  run_kernel(make(5, 7, 0, 0, 8, 8, causal(5, 7)));
  run_kernel(make(5, 7, 0, 2, 8, 8, causal(5, 7)));
  const auto no_values = make(5, 7, 2, 1, 8, 0, causal(5, 7));
  expect_matches_reference(no_values, run_kernel(no_values));
  auto no_dim = make(5, 7, 2, 1, 0, 8, causal(5, 7));
  no_dim.scoring.scale = 1;
  expect_matches_reference(no_dim, run_kernel(no_dim));
}

TEST(Block, EveryKindOfBand) {
  for (const auto& [name, bands] :
       band_kinds(250, 810)) {  // several tiles either way, in both kernels
    SCOPED_TRACE(name);
    const auto c = make(250, 810, 4, 2, 20, 12, bands);
    expect_matches_reference(c, run_kernel(c));
  }
}

TEST(Block, RandomBands) {
  std::mt19937 random(5);
  for (int round = 0; round < 100; ++round) {
    const std::int64_t q_rows = 1 + random() % 120,
                       k_rows = 1 + random() % (round % 4 == 0 ? 900 : 120);
    const auto bands =
        test::random_disjoint_slices(q_rows, k_rows, 1 + static_cast<int>(random() % 6), random);
    SCOPED_TRACE(round);
    const auto c = make(q_rows, k_rows, 2, 1, 8, 8, bands, static_cast<std::uint32_t>(round));
    expect_matches_reference(c, run_kernel(c));
    expect_matches_reference(c,
                             run_kernel(c, {.key_cuts = {k_rows / 3, k_rows / 3, 3 * k_rows / 4}}));
  }
}

TEST(Block, FewRowsOverManyKeysAreCutByTheirKeys) {
  for (const std::int64_t rows : {1, 7, 59}) {
    for (const auto& scoring : test::scoring_kinds()) {
      SCOPED_TRACE(runtime::concat(rows, " rows, ", scoring.name));
      // Causal, with documents that begin anew, so that parts of a row see nothing.
      std::vector<Slice> bands = {{0, (rows + 1) / 2, 0, 2500, -kUnbounded, 2400},
                                  {(rows + 1) / 2, rows, 3800, 5003, -kUnbounded, 4990}};
      auto c = make(rows, 5003, 1, 1, 40, 24, bands);
      scoring.apply(c);
      const AttentionResult got = run_kernel(c, {.threads = 1});
      expect_matches_reference(c, got);
      EXPECT_EQ(got, run_kernel(c, {.threads = 3}));
      c.k[4900 * 40] = std::numeric_limits<float>::quiet_NaN();  // only the second document sees it
      const AttentionResult bad = run_kernel(c, {.threads = 2});
      for (std::int64_t row = 0; row < rows; ++row) {
        const float first = bad.out[static_cast<std::size_t>(row * 24)];
        EXPECT_EQ(std::isnan(first), row >= (rows + 1) / 2) << row;
      }
    }
  }
}

TEST(Block, RowsOfASingleKeyHaveNoScoreGradient) {
  std::vector<Slice> single;
  for (std::int64_t i = 0; i < 300; ++i) single.push_back({i, i + 1, i, i + 1});
  const auto got = run_kernel(make(300, 300, 2, 1, 24, 24, single));
  EXPECT_EQ(got.dq, std::vector<float>(got.dq.size()));
  EXPECT_EQ(got.dk, std::vector<float>(got.dk.size()));
}

TEST(Block, StridedViewsGiveTheSameBits) {
  for (const auto& [name, bands] : band_kinds(130, 150)) {
    for (const auto& scoring : test::scoring_kinds()) {
      SCOPED_TRACE(runtime::concat(name, ", ", scoring.name));
      auto c = make(130, 150, 4, 2, 20, 36, bands);
      scoring.apply(c);
      EXPECT_EQ(run_kernel(c, {.strided = true}), run_kernel(c));
    }
  }
}

TEST(Block, AddMergesAndSums) {
  for (const auto& [name, bands] : band_kinds(250, 310)) {
    SCOPED_TRACE(name);
    const auto c = make(250, 310, 2, 1, 24, 24, bands);
    expect_matches_reference(c, run_kernel(c, {.key_cuts = {100, 101, 290}}));
  }
}

TEST(Block, AddsIntoGradients) {
  const auto c = make(50, 60, 2, 1, 20, 20, causal(50, 60));
  const auto single = run_kernel(c);
  const Stream stream = Stream::cpu("add");
  const auto tensor = [&](const std::vector<float>& values,
                          std::initializer_list<std::int64_t> sizes) {
    Tensor t(sizes, DType::float32, stream);
    std::copy(values.begin(), values.end(), t.as<float>());
    return t;
  };
  const auto input = [&](const std::vector<float>& values,
                         std::initializer_list<std::int64_t> sizes) {
    Tensor t(sizes, c.bf16 ? DType::bfloat16 : DType::float32, stream);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (c.bf16) {
        t.as<runtime::BFloat16>()[i] = runtime::BFloat16(values[i]);
      } else {
        t.as<float>()[i] = values[i];
      }
    }
    return t;
  };
  const Tensor q = input(c.q, {50, 2, 20}), k = input(c.k, {60, 1, 20}),
               v = input(c.v, {60, 1, 20});
  const Tensor dout = input(c.dout, {50, 2, 20}), out = tensor(single.out, {50, 2, 20});
  const Tensor lse = tensor(single.lse_parts(), {50, 2, 2}), delta({50, 2}, DType::float32, stream);
  const Tensor dq = tensor(single.dq, {50, 2, 20}), dk = tensor(single.dk, {60, 1, 20});
  const Tensor dv = tensor(single.dv, {60, 1, 20});
  block_delta(out, dout, delta, stream);
  block_backward({q, k, v, dout, lse, delta}, c.bands, c.scoring, dq, Mode::add, dk, dv, Mode::add,
                 stream);
  stream.synchronize(runtime::deadline_in(10));
  for (std::size_t i = 0; i < single.dq.size(); ++i) EXPECT_EQ(dq.as<float>()[i], 2 * single.dq[i]);
  for (std::size_t i = 0; i < single.dk.size(); ++i) EXPECT_EQ(dk.as<float>()[i], 2 * single.dk[i]);
  for (std::size_t i = 0; i < single.dv.size(); ++i) EXPECT_EQ(dv.as<float>()[i], 2 * single.dv[i]);
}

TEST(Block, BFloat16InputsAreExact) {
  for (const std::int64_t dim : {20, 64}) {
    AttentionCase c{127, 200, 4, 1, dim, dim, causal(127, 200, 20)};
    c.bf16 = true;
    c.fill(3);
    expect_matches_reference(c, run_kernel(c));
    expect_matches_reference(c, run_kernel(c, {.key_cuts = {77}, .strided = true}));
  }
}

TEST(Block, LargeLogits) {
  auto c = make(200, 900, 2, 1, 64, 64, causal(200, 900, 700));
  c.scoring.scale *= 30;
  for (float& x : c.q) x *= 3;
  expect_matches_reference(c, run_kernel(c));
  expect_matches_reference(c, run_kernel(c, {.key_cuts = {450}}));
}

TEST(Block, ThreadsGiveTheSameBits) {
  const auto kinds = test::scoring_kinds();
  std::size_t round = 0;
  for (const auto& [name, bands] : band_kinds(700, 900)) {
    // Softmax with every kind of band, the others in turn.
    for (const auto& scoring : {kinds[0], kinds[1 + round++ % (kinds.size() - 1)]}) {
      SCOPED_TRACE(runtime::concat(name, ", ", scoring.name));
      auto c = make(700, 900, 4, 2, 16, 16, bands);
      scoring.apply(c);
      const AttentionResult one = run_kernel(c);
      for (const int threads : {2, 3, 5}) EXPECT_EQ(run_kernel(c, {.threads = threads}), one);
      EXPECT_EQ(run_kernel(c), one);
    }
  }
}

TEST(Block, OneDocumentNeverTouchesAnother) {
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              infinity = std::numeric_limits<float>::infinity();
  for (const auto& scoring : test::scoring_kinds()) {
    for (const std::int64_t split : {1, 50, 192, 384, 405}) {
      SCOPED_TRACE(runtime::concat(scoring.name, ", split ", split));
      const TwoDocuments clean(500, split, scoring);
      const AttentionResult expected = clean.second(run_kernel(clean.which));
      const std::vector<std::function<float(float)>> changes{
          [](float x) { return -3 * x + 1; }, [](float) { return 0.0f; },
          [=](float) { return nan; }, [=](float x) { return x > 0 ? infinity : -infinity; }};
      for (const auto& change : changes) {
        TwoDocuments changed(500, split, scoring);
        changed.replace_first(change);
        EXPECT_EQ(changed.second(run_kernel(changed.which)), expected);
        EXPECT_EQ(changed.second(run_kernel(changed.which, {.threads = 2, .strided = true})),
                  expected);
      }
    }
  }
}

TEST(Block, OneBadTensorOfADocumentNeverTouchesAnother) {
  for (const auto& scoring : test::scoring_kinds()) {
    SCOPED_TRACE(scoring.name);
    const TwoDocuments clean(120, 50, scoring);
    const AttentionResult expected = clean.second(run_kernel(clean.which));
    for (auto tensor :
         {&AttentionCase::q, &AttentionCase::k, &AttentionCase::v, &AttentionCase::dout}) {
      TwoDocuments changed(120, 50, scoring);
      auto& values = changed.which.*tensor;
      std::fill_n(values.begin(), values.size() / 120 * 50,
                  std::numeric_limits<float>::quiet_NaN());
      EXPECT_EQ(changed.second(run_kernel(changed.which)), expected);
    }
  }
}

TEST(Block, NaNThatIsSeenShows) {
  auto c = make(40, 40, 1, 1, 8, 8, causal(40, 40));
  c.q[10 * 8] = c.v[20 * 8] = std::numeric_limits<float>::quiet_NaN();
  const auto got = run_kernel(c);
  EXPECT_TRUE(std::isnan(got.lse[10]) && std::isnan(got.out[10 * 8]));
  EXPECT_TRUE(std::isnan(got.out[20 * 8]) && std::isnan(got.out[39 * 8]) &&
              !std::isnan(got.out[19 * 8]));
}

TEST(Block, RowsWithoutAGlobalKeyGiveNoGradient) {
  // The schedule says visible, the global LSE says nothing was: the row is left out, NaN or not.
  auto c = make(100, 200, 2, 1, 16, 16, {{0, 100, 0, 200}});
  const Stream stream = Stream::cpu("empty rows");
  const auto tensor = [&](const std::vector<float>& values,
                          std::initializer_list<std::int64_t> sizes) {
    Tensor t(sizes, DType::float32, stream);
    std::copy(values.begin(), values.end(), t.as<float>());
    return t;
  };
  const auto input = [&](const std::vector<float>& values,
                         std::initializer_list<std::int64_t> sizes) {
    Tensor t(sizes, c.bf16 ? DType::bfloat16 : DType::float32, stream);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (c.bf16) {
        t.as<runtime::BFloat16>()[i] = runtime::BFloat16(values[i]);
      } else {
        t.as<float>()[i] = values[i];
      }
    }
    return t;
  };
  const auto whole = run_kernel(c);
  for (std::int64_t d = 0; d < 16; ++d) {
    for (std::int64_t h = 0; h < 2; ++h) {
      c.q[static_cast<std::size_t>((5 * 2 + h) * 16 + d)] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  auto lse_values = whole.lse_parts();
  lse_values[20] = lse_values[22] = -std::numeric_limits<float>::infinity();
  lse_values[21] = lse_values[23] = 0;
  const Tensor q = input(c.q, {100, 2, 16}), k = input(c.k, {200, 1, 16}),
               v = input(c.v, {200, 1, 16});
  const Tensor dout = input(c.dout, {100, 2, 16}), out = tensor(whole.out, {100, 2, 16});
  const Tensor lse = tensor(lse_values, {100, 2, 2}), delta({100, 2}, DType::float32, stream);
  const Tensor dq({100, 2, 16}, DType::float32, stream), dk({200, 1, 16}, DType::float32, stream);
  const Tensor dv({200, 1, 16}, DType::float32, stream);
  block_delta(out, dout, delta, stream);
  block_backward({q, k, v, dout, lse, delta}, c.bands, c.scoring, dq, Mode::write, dk, dv,
                 Mode::write, stream);
  stream.synchronize(runtime::deadline_in(10));
  c.fill(1);
  c.bands = {{0, 5, 0, 200}, {6, 100, 0, 200}};
  expect_matches_reference(c, {.out = run_kernel(c).out,
                               .lse = run_kernel(c).lse,
                               .dq = {dq.as<float>(), dq.as<float>() + dq.elements()},
                               .dk = {dk.as<float>(), dk.as<float>() + dk.elements()},
                               .dv = {dv.as<float>(), dv.as<float>() + dv.elements()},
                               .lse_low = run_kernel(c).lse_low});
}

TEST(Block, WrongArgumentsAreRefusedAtTheCall) {
  const Stream stream = Stream::cpu("arguments");
  const auto tensor = [&](std::initializer_list<std::int64_t> sizes, DType dtype = DType::float32) {
    return Tensor(sizes, dtype, stream);
  };
  const Tensor q = tensor({4, 6, 8}), k = tensor({5, 4, 8}), v = tensor({5, 4, 8}),
               out = tensor({4, 6, 8});
  const Tensor lse = tensor({4, 6, 2}), k2 = tensor({5, 2, 8}), v2 = tensor({5, 2, 8});
  const auto forward = [&](const Tensor& keys, const Tensor& values, const Tensor& to,
                           std::vector<Slice> bands) {
    block_forward(q, keys, values, std::move(bands), {}, to, lse, Mode::write, stream);
  };
  EXPECT_THROW(forward(k, v, out, {}), Error);  // 6 heads over 4
  EXPECT_THROW(forward(k2, v, out, {}), Error);
  EXPECT_THROW(forward(k2, tensor({6, 2, 8}), out, {}), Error);
  EXPECT_THROW(forward(k2, tensor({5, 2, 8}, DType::bfloat16), out, {}), Error);
  EXPECT_THROW(forward(k2, v2, tensor({4, 6, 8}, DType::bfloat16), {}), Error);
  EXPECT_THROW(forward(k2, v2, out, {{0, 4, 0, 6}}), Error);
  EXPECT_NO_THROW(forward(k2, v2, out, {{0, 4, 0, 5}}));
  EXPECT_THROW(block_forward(q, k2, v2, {}, {}, out, tensor({4, 6}), Mode::write, stream), Error);
  stream.synchronize(runtime::deadline_in(10));
}

}  // namespace
}  // namespace longhaul::attention
