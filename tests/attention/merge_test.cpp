// Merging partials against one pass over all keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "attention/block.h"
#include "tests/support/attention_case.h"

namespace longhaul::attention {
namespace {

using runtime::DType;
using runtime::Stream;
using runtime::Tensor;
using test::AttentionCase;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// `lse`: high and low, row by row.
struct Partial {
  std::vector<float> out, lse;
};

/// merge() of [rows, 1, dim] partials, one after another into the first.
Partial merged(const std::vector<Partial>& parts, std::int64_t dim) {
  const Stream stream = Stream::cpu("merge", 2);
  const auto rows = static_cast<std::int64_t>(parts[0].lse.size() / 2);
  std::vector<Tensor> held;
  const auto tensor = [&](const std::vector<float>& values,
                          std::initializer_list<std::int64_t> sizes) {
    Tensor t(sizes, DType::float32, stream);
    std::copy(values.begin(), values.end(), t.as<float>());
    return t;
  };
  const Tensor out = tensor(parts[0].out, {rows, 1, dim}), lse = tensor(parts[0].lse, {rows, 1, 2});
  for (std::size_t i = 1; i < parts.size(); ++i) {
    held.push_back(tensor(parts[i].out, {rows, 1, dim}));
    held.push_back(tensor(parts[i].lse, {rows, 1, 2}));
    merge(held[held.size() - 2], held.back(), out, lse, stream);
  }
  stream.synchronize(runtime::deadline_in(10));
  return {{out.as<float>(), out.as<float>() + out.elements()},
          {lse.as<float>(), lse.as<float>() + lse.elements()}};
}

TEST(Merge, AnyOrderOfPartsGivesTheSinglePass) {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    const std::int64_t rows = 1 + random() % 40, keys = 1 + random() % 120, dim = 1 + random() % 20;
    AttentionCase whole{
        rows,
        keys,
        1,
        1,
        dim,
        dim,
        {{0, rows, 0, keys, -kUnbounded, static_cast<std::int64_t>(random() % 60) - 20}}};
    whole.fill(static_cast<std::uint32_t>(round));
    whole.scoring.scale *= round % 2 == 0 ? 1.0f : 40.0f;
    const auto exact = test::run_reference<double>(whole), expected = exact;
    const auto plain = test::run_reference<float>(whole);
    std::vector<Partial> parts;
    for (std::int64_t begin = 0; begin < keys;) {
      const std::int64_t end = std::min<std::int64_t>(keys, begin + 1 + random() % 40);
      AttentionCase part = whole;
      part.bands = {intersect(whole.bands[0], {0, rows, begin, end})};
      const auto result = test::run_kernel(part);
      parts.push_back({result.out, result.lse_parts()});
      begin = end;
    }
    std::shuffle(parts.begin(), parts.end(), random);
    const Partial got = merged(parts, dim);
    const double bound = std::max(3e-6, 2 * test::relative_error(plain.out, exact.out));
    EXPECT_LE(test::relative_error(got.out, expected.out), bound);
    for (std::size_t i = 0; i < got.lse.size() / 2; ++i) {
      if (std::isinf(expected.lse[i])) {
        EXPECT_EQ(got.lse[2 * i], kMinusInfinity);
        EXPECT_EQ(got.lse[2 * i + 1], 0);
      } else {
        EXPECT_NEAR(got.lse[2 * i], expected.lse[i],
                    1e-5 * std::max(1.0, std::abs(expected.lse[i])));
      }
    }
  }
}

TEST(Merge, EmptySidesAreExact) {
  const Partial full{{1.5f, -2}, {0.25f, 1e-9f}}, empty{{0, 0}, {kMinusInfinity, 0}};
  for (const auto& parts :
       {std::vector{full, empty}, std::vector{empty, full}, std::vector{empty, full, empty}}) {
    const Partial got = merged(parts, 2);
    EXPECT_EQ(got.out, full.out);
    EXPECT_EQ(got.lse, full.lse);
  }
  const Partial nothing = merged({empty, empty}, 2);
  EXPECT_EQ(nothing.out, empty.out);
  EXPECT_EQ(nothing.lse, empty.lse);
}

TEST(Merge, FarApartLseTakesTheLargerSide) {
  const Partial low{{5, 6}, {-5000, 0}}, high{{1, 2}, {5000, 1e-5f}};
  for (const auto& parts : {std::vector{low, high}, std::vector{high, low}}) {
    const Partial got = merged(parts, 2);
    EXPECT_EQ(got.out, high.out);
    EXPECT_EQ(got.lse, high.lse);
  }
  const Partial even = merged({{{1, 3}, {1e4f, 0}}, {{3, 5}, {1e4f, 0}}}, 2);
  EXPECT_EQ(even.out, (std::vector<float>{2, 4}));
  EXPECT_EQ(even.lse[0], 1e4f + std::log(2.0f));
  EXPECT_NEAR(double{even.lse[0]} + double{even.lse[1]}, 1e4 + std::log(2.0), 1e-10);
}

TEST(Merge, WhatLiesBelowTheHighPartsLastPlaceCounts) {
  // Two partials at 1e4, where floats lie 2^-10 apart: their LSEs differ by half of that.
  for (const float low : {0x1p-12f, -0x1p-12f}) {
    const double weight = 1 / (1 + std::exp(double{low}));
    for (const float offset : {1e4f, -1e4f}) {
      const Partial got = merged({{{1, 3}, {offset, low}}, {{3, 5}, {offset, 0}}}, 2);
      EXPECT_NEAR(got.out[0], 1 * (1 - weight) + 3 * weight, 2e-7);
      EXPECT_NEAR(double{got.lse[0]} + double{got.lse[1]},
                  double{offset} + std::log(1 + std::exp(double{low})), 1e-9);
    }
  }
}

}  // namespace
}  // namespace longhaul::attention
