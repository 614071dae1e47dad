// The short convolution on one device against sums over tokens in float64.
#include "attention/short_conv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "tests/support/conv_oracle.h"
#include "tests/support/expect_error.h"
#include "tests/support/host_tensors.h"

namespace longhaul::attention {
namespace {

using runtime::DType;
using runtime::ExitCode;
using runtime::Stream;
using runtime::Tensor;
using test::ConvAnswers;
using test::ConvProblem;

using Runs = std::vector<runtime::Run>;

/// What a rank that holds all tokens computes.
struct Results {
  std::vector<double> y, dpre, dx, dweight, dbias;
};
Results run(const ConvProblem& problem, int threads = 1) {
  const Stream stream = Stream::cpu("conv", threads);
  const std::int64_t n = problem.tokens(), channels = problem.channels, width = problem.width;
  const Runs all{{0, n, 1}};
  const auto rows = std::make_shared<const ConvRows>(conv_rows(all, problem.documents, width));
  EXPECT_EQ(rows->left_rows + rows->right_rows, 0);
  const DType dtype = problem.bfloat16 ? DType::bfloat16 : DType::float32;
  const Tensor x = test::make_tensor(problem.x, {n, channels}, dtype, stream),
               dy = test::make_tensor(problem.dy, {n, channels}, dtype, stream),
               weight =
                   test::make_tensor(problem.weight, {channels, width}, DType::float32, stream),
               bias = test::make_tensor(problem.bias, {problem.has_bias() ? channels : 0},
                                        DType::float32, stream),
               halo({0, channels}, dtype, stream), y({n, channels}, dtype, stream),
               dpre({n, channels}, dtype, stream), dx({n, channels}, dtype, stream),
               dweight({channels, width}, DType::float32, stream),
               dbias({channels}, DType::float32, stream);
  runtime::fill(dweight, 0, stream);
  runtime::fill(dbias, 0, stream);
  ShortConvInputs inputs{x, halo, weight, {}};
  ShortConvGradients gradients{dx, dweight, {}};
  if (problem.has_bias()) inputs.bias = bias, gradients.dbias = dbias;
  short_conv(rows, inputs, y, stream);
  short_conv_dpre(rows, inputs, dy, dpre, stream);
  short_conv_backward(rows, inputs, dpre, halo, gradients, stream);
  return {test::read(y, stream), test::read(dpre, stream), test::read(dx, stream),
          test::read(dweight, stream), test::read(dbias, stream)};
}

void expect_near(const ConvProblem& problem, const Results& got, double bound) {
  const ConvAnswers exact = test::conv_answers(problem);
  const std::string what = problem.show();
  EXPECT_LE(test::relative_error(got.y, exact.y), bound) << "y, " << what;
  EXPECT_LE(test::relative_error(got.dx, exact.dx), bound) << "dx, " << what;
  EXPECT_LE(test::sum_error(got.dweight, exact.dweight, exact.dweight_terms), bound)
      << "dweight, " << what;
  if (problem.has_bias()) {
    EXPECT_LE(test::sum_error(got.dbias, exact.dbias, exact.dbias_terms), bound)
        << "dbias, " << what;
  }
}

TEST(ShortConv, IsTheSumOverTokensForEveryWidthAndLength) {
  for (std::int64_t width = 1; width <= 5; ++width) {
    for (const std::int64_t n : {0, 1, 2, 3, 7, 127}) {
      for (const std::int64_t channels : {1, 7, 64, 300}) {
        for (const bool bias : {false, true}) {
          for (const std::vector<std::int64_t>& documents : test::document_offsets(n)) {
            const ConvProblem problem(documents, channels, width, bias, false, 1);
            expect_near(problem, run(problem), 2e-6);
          }
        }
      }
    }
  }
}

TEST(ShortConv, RoundsBfloat16OnceForEachOfItsResults) {
  for (std::int64_t width = 1; width <= 5; ++width) {
    for (const std::int64_t n : {1, 7, 127}) {
      const ConvProblem problem({0, n / 2, n}, 67, width, true, true, 2);
      const Results got = run(problem);
      expect_near(problem, got, 5e-3);
      const std::vector<double> exact = test::conv_answers(problem).y;
      std::size_t others = 0;  // than the exact value's nearest: where float32 crosses a tie
      for (std::size_t i = 0; i < exact.size(); ++i) {
        const auto nearest = runtime::BFloat16(static_cast<float>(exact[i]));
        others += got.y[i] != static_cast<double>(static_cast<float>(nearest)) ? 1 : 0;
      }
      EXPECT_LE(others, exact.size() / 500) << problem.show();
    }
  }
}

TEST(ShortConv, OracleHasTheSlopesOfItsOutput) {
  ConvProblem problem({0, 1, 9, 9, 14}, 3, 4, true, false, 3);
  const ConvAnswers answers = test::conv_answers(problem);
  const auto loss = [&] {
    const std::vector<double> y = test::conv_answers(problem).y;
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * problem.dy[i];
    return sum;
  };
  const auto compare = [&](std::vector<double>& values, const std::vector<double>& slopes) {
    ASSERT_EQ(values.size(), slopes.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double held = values[i], step = 1e-5;
      values[i] = held + step;
      const double above = loss();
      values[i] = held - step;
      const double below = loss();
      values[i] = held;
      EXPECT_NEAR((above - below) / (2 * step), slopes[i], 1e-8);
    }
  };
  compare(problem.x, answers.dx);
  compare(problem.weight, answers.dweight);
  compare(problem.bias, answers.dbias);
}

TEST(ShortConv, GradientsOfWeightsAreAddedToWhatIsThere) {
  const ConvProblem problem({0, 5}, 2, 3, true, false, 4);
  const Stream stream = Stream::cpu("conv");
  const Runs all{{0, 5, 1}};
  const auto rows = std::make_shared<const ConvRows>(conv_rows(all, problem.documents, 3));
  const Tensor x = test::make_tensor(problem.x, {5, 2}, DType::float32, stream),
               dpre = test::make_tensor(problem.dy, {5, 2}, DType::float32, stream),
               weight = test::make_tensor(problem.weight, {2, 3}, DType::float32, stream),
               bias = test::make_tensor(problem.bias, {2}, DType::float32, stream),
               halo({0, 2}, DType::float32, stream), dx({5, 2}, DType::float32, stream),
               dweight({2, 3}, DType::float32, stream), dbias({2}, DType::float32, stream);
  runtime::fill(dweight, 0, stream);
  runtime::fill(dbias, 0, stream);
  const auto add = [&] {
    short_conv_backward(rows, {x, halo, weight, bias}, dpre, halo, {dx, dweight, dbias}, stream);
  };
  add();
  const std::vector<double> once = test::read(dweight, stream),
                            bias_once = test::read(dbias, stream);
  add();
  const std::vector<double> twice = test::read(dweight, stream),
                            bias_twice = test::read(dbias, stream);
  for (std::size_t i = 0; i < once.size(); ++i) EXPECT_EQ(twice[i], 2 * once[i]);
  for (std::size_t i = 0; i < bias_once.size(); ++i) EXPECT_EQ(bias_twice[i], 2 * bias_once[i]);
}

TEST(ShortConv, BitsDoNotDependOnThreadsNorOnNeighbours) {
  const std::vector<std::int64_t> documents{0, 37, 38, 40, 140, 200};
  const ConvProblem problem(documents, 517, 4, true, false, 5);
  const Results one = run(problem);
  const Results three = run(problem, 3);
  EXPECT_EQ(one.y, three.y);
  EXPECT_EQ(one.dpre, three.dpre);
  EXPECT_EQ(one.dx, three.dx);
  EXPECT_EQ(one.dweight, three.dweight);
  EXPECT_EQ(one.dbias, three.dbias);
  for (std::size_t d = 0; d + 1 < documents.size(); ++d) {
    const Results alone = run(problem.document(d));
    const auto begin = documents[d] * problem.channels, end = documents[d + 1] * problem.channels;
    const auto part = [&](const std::vector<double>& all) {
      return std::vector<double>(all.begin() + begin, all.begin() + end);
    };
    EXPECT_EQ(alone.y, part(one.y)) << "document " << d;
    EXPECT_EQ(alone.dx, part(one.dx)) << "document " << d;
  }
}

TEST(ShortConv, ADocumentOfNaNsLeavesItsNeighboursBits) {
  const std::vector<std::int64_t> documents{0, 9, 12, 30};
  for (std::int64_t width = 1; width <= 5; ++width) {
    ConvProblem problem(documents, 21, width, true, false, 6);
    const Results clean = run(problem);
    const auto begin = static_cast<std::size_t>(documents[1] * problem.channels),
               end = static_cast<std::size_t>(documents[2] * problem.channels);
    for (std::size_t i = begin; i < end; ++i)
      problem.x[i] = problem.dy[i] = std::numeric_limits<double>::quiet_NaN();
    const Results dirty = run(problem);
    for (std::size_t i = 0; i < clean.y.size(); ++i) {
      if (i >= begin && i < end) {
        EXPECT_TRUE(std::isnan(dirty.y[i]));
        EXPECT_TRUE(std::isnan(dirty.dx[i]));
      } else {
        EXPECT_EQ(dirty.y[i], clean.y[i]);
        EXPECT_EQ(dirty.dx[i], clean.dx[i]);
      }
    }
  }
}

TEST(ShortConv, LaterTokensLeaveEarlierOutputsBits) {
  ConvProblem problem({0, 70}, 9, 4, false, false, 7);
  const Results before = run(problem);
  for (std::size_t token = 0; token < 70; ++token) {
    ConvProblem changed = problem;
    for (std::size_t c = 0; c < 9; ++c) changed.x[token * 9 + c] += 1;
    const Results after = run(changed);
    for (std::size_t i = 0; i < token * 9; ++i) ASSERT_EQ(after.y[i], before.y[i]);
    EXPECT_NE(after.y[token * 9], before.y[token * 9]);
  }
}

TEST(ShortConv, RowsMayBeStridedAndDpreMayBeDy) {
  const std::int64_t n = 33, channels = 19, width = 4;
  const ConvProblem problem({0, 20, n}, channels, width, true, false, 8);
  const Results packed = run(problem);
  const Stream stream = Stream::cpu("conv");
  const Runs all{{0, n, 1}};
  const auto rows = std::make_shared<const ConvRows>(conv_rows(all, problem.documents, width));
  std::vector<double> wide;  // x, dy and what lies between
  for (std::size_t row = 0; row < static_cast<std::size_t>(n); ++row) {
    for (const auto* part : {&problem.x, &problem.dy})
      wide.insert(wide.end(), part->begin() + static_cast<std::ptrdiff_t>(row) * channels,
                  part->begin() + static_cast<std::ptrdiff_t>(row + 1) * channels);
    wide.push_back(std::numeric_limits<double>::quiet_NaN());
  }
  const Tensor both = test::make_tensor(wide, {n, 2 * channels + 1}, DType::float32, stream),
               out({n, 2 * channels}, DType::float32, stream),
               weight =
                   test::make_tensor(problem.weight, {channels, width}, DType::float32, stream),
               bias = test::make_tensor(problem.bias, {channels}, DType::float32, stream),
               halo({0, channels}, DType::float32, stream),
               y({n, channels}, DType::float32, stream), dx({n, channels}, DType::float32, stream),
               dweight({channels, width}, DType::float32, stream),
               dbias({channels}, DType::float32, stream);
  const auto x = both.view().slice(1, 0, channels),
             dy = both.view().slice(1, channels, 2 * channels);
  const auto y_strided = out.view().slice(1, 0, channels),
             dx_strided = out.view().slice(1, channels, 2 * channels);
  const ShortConvInputs inputs{x, halo, weight, bias};
  runtime::fill(dweight, 0, stream);
  runtime::fill(dbias, 0, stream);
  short_conv(rows, inputs, y_strided, stream);
  short_conv_dpre(rows, inputs, dy, dy, stream);
  short_conv_backward(rows, inputs, dy, halo, {dx_strided, dweight, dbias}, stream);
  runtime::copy(y_strided, y, stream);
  runtime::copy(dx_strided, dx, stream);
  EXPECT_EQ(test::read(y, stream), packed.y);
  EXPECT_EQ(test::read(dx, stream), packed.dx);
  EXPECT_EQ(test::read(dweight, stream), packed.dweight);
}

TEST(ConvRows, SaysWhichTokensContinueARun) {
  //                     0     4  5        9        13
  const std::vector<std::int64_t> documents{0, 4, 5, 5, 9, 13};
  const ConvRows rows = conv_rows(Runs{{2, 1}, {3, 0}, {4, 3}, {8, 2}, {10, 1}}, documents, 4);
  EXPECT_EQ(rows.rows, 7);
  EXPECT_EQ(rows.left, (Runs{{0, 2}, {5, 3}}));
  EXPECT_EQ(rows.right, (Runs{{3, 1}, {7, 2}, {11, 2}}));
  const std::vector<ConvPiece> pieces{
      {0, 1, 0, 2, 0, 1},  // 2 of [0, 4): 0, 1 before, 3 behind
      {1, 2, 2, 0, 1, 0},  // 4, a document
      {2, 4, 2, 0, 1, 2},  // 5, 6 of [5, 9): 7, 8 behind
      {4, 5, 2, 3, 3, 0},  // 8 of it: 5, 6, 7 before
      {5, 7, 5, 0, 3, 2},  // 9, 10 of [9, 13)
  };
  EXPECT_EQ(rows.pieces, pieces);
  EXPECT_EQ(rows.left_rows, 5);
  EXPECT_EQ(rows.right_rows, 5);
}

TEST(ConvRows, RefusesWhatItCannotDo) {
  const std::vector<std::int64_t> documents{0, 8};
  const Runs all{{0, 8}};
  test::expect_error(ExitCode::config, "width 0; expected 1 to 5",
                     [&] { conv_rows(all, documents, 0); });
  test::expect_error(ExitCode::config, "width 6; expected 1 to 5",
                     [&] { conv_rows(all, documents, 6); });
  test::expect_error(ExitCode::config, "use a layout other than striped", [&] {
    conv_rows(Runs{{0, 4, 2}}, documents, 4);
  });
  test::expect_error(ExitCode::internal, "a run of tokens [4, 9) of 8", [&] {
    conv_rows(Runs{{4, 5}}, documents, 4);
  });
  test::expect_error(ExitCode::internal, "after one that ends before token 3", [&] {
    conv_rows(Runs{{0, 3}, {2, 2}}, documents, 4);
  });
}

TEST(ShortConv, RefusesTensorsThatDoNotFit) {
  const Stream stream = Stream::cpu("conv");
  const Runs all{{2, 6}};
  const std::vector<std::int64_t> documents{0, 8};
  const auto rows = std::make_shared<const ConvRows>(conv_rows(all, documents, 4));
  const Tensor x({6, 4}, DType::float32, stream), half({6, 4}, DType::bfloat16, stream),
      left({2, 4}, DType::float32, stream), weight({4, 4}, DType::float32, stream);
  test::expect_error(ExitCode::internal, "the left halo is [0, 4] float32; expected [2, 4] float32",
                     [&] {
                       short_conv(rows, {x, left.view().slice(0, 0, 0), weight, {}}, x, stream);
                     });
  test::expect_error(ExitCode::internal, "y is [6, 4] bfloat16; expected [6, 4] float32", [&] {
    short_conv(rows, {x, left, weight, {}}, half, stream);
  });
  test::expect_error(ExitCode::internal, "dbias goes with bias", [&] {
    short_conv_backward(rows, {x, left, weight, weight.view().slice(0, 0, 1).reshape({4})}, x,
                        left.view().slice(0, 0, 0), {x, weight, {}}, stream);
  });
}

}  // namespace
}  // namespace longhaul::attention
