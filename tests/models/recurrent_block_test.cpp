// Blocks around a recurrence against their definitions in double, over ranks and documents.
#include "models/recurrent_block.h"

#include <gtest/gtest.h>

#include <cmath>

#include "models/linear_llama_block.h"
#include "tests/support/block_rig.h"
#include "tests/support/expect_error.h"
#include "tests/support/host_tensors.h"

namespace longhaul::models {
namespace {

using parallel::LayoutKind;
using runtime::DType;
using test::BlockCase;
using test::BlockJob;
using test::BlockResults;
using test::random_values;
using test::relative_error;
using test::run_block;

constexpr double kOutputBound = 3e-6;
constexpr double kGradientBound = 1e-5;  // between any two ways to compute the same step in fp32
const std::vector<std::int64_t> kDocuments = {5, 1, 6, 11};

std::vector<double> rows_for(const BlockCase& block, unsigned seed) {
  return random_values(23 * block.hidden, seed, true);
}

void expect_results(const BlockResults& actual, const BlockResults& expected, double output_bound,
                    double gradient_bound) {
  EXPECT_LE(relative_error(actual.y, expected.y), output_bound);
  EXPECT_LE(relative_error(actual.dx, expected.dx), gradient_bound) << "dx";
  for (const auto& [name, values] : expected.gradients)
    EXPECT_LE(relative_error(actual.gradients.at(name), values), gradient_bound) << name;
}

class RecurrentBlocks : public ::testing::TestWithParam<BlockCase> {};
INSTANTIATE_TEST_SUITE_P(Models, RecurrentBlocks, ::testing::ValuesIn(test::recurrent_cases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(RecurrentBlocks, OutputAndEveryGradientMatchTheDefinitionOverRanksAndDocuments) {
  const BlockCase& block = GetParam();
  const std::vector<double> x = rows_for(block, 1), dy = rows_for(block, 2);
  BlockResults expected;
  for (const int ranks : {1, 2, 3, 4}) {
    for (const LayoutKind layout : {LayoutKind::contiguous, LayoutKind::zigzag}) {
      SCOPED_TRACE(runtime::concat(name(layout), " over ", ranks));
      const BlockResults actual = run_block({block, kDocuments, ranks, layout}, x, dy);
      if (expected.y.empty())
        expected = test::defined_block(block, kDocuments, actual.parameters, x, dy);
      expect_results(actual, expected, kOutputBound, kGradientBound);
    }
  }
}

/// Every value moved by the largest bfloat16 rounding, up or down.
std::vector<double> moved(std::vector<double> values, unsigned seed) {
  const std::vector<double> random = random_values(std::ssize(values), seed);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] *= random[i] < 0 ? 1 - 0x1p-9 : 1 + 0x1p-9;
  return values;
}

TEST_P(RecurrentBlocks, BFloat16IsWithinItsRounding) {
  // x, dy and parameters are exact in bfloat16. A value passes about fifteen roundings forward and
  // fifteen back; independent errors add like their square root. What one of them does to a result
  // is what moving every input of the definition by one does, at least its own size.
  const BlockCase& block = GetParam();
  const std::vector<double> x = rows_for(block, 1), dy = rows_for(block, 2);
  const BlockResults actual =
      run_block({block, kDocuments, 2, LayoutKind::zigzag, DType::bfloat16}, x, dy);
  test::NamedValues parameters = actual.parameters;
  unsigned seed = 10;
  for (auto& [name, values] : parameters) values = moved(values, seed++);
  const BlockResults exact = test::defined_block(block, kDocuments, actual.parameters, x, dy),
                     near = test::defined_block(block, kDocuments, parameters, moved(x, seed), dy);
  const auto expect = [](const std::string& what, const std::vector<double>& result,
                         const std::vector<double>& of_exact, const std::vector<double>& of_near) {
    const double rounding = std::max(0x1p-9, relative_error(of_near, of_exact));
    EXPECT_LE(relative_error(result, of_exact), std::sqrt(30.0) * rounding) << what;
  };
  expect("y", actual.y, exact.y, near.y);
  expect("dx", actual.dx, exact.dx, near.dx);
  for (const auto& [name, values] : exact.gradients)
    expect(name, actual.gradients.at(name), values, near.gradients.at(name));
}

TEST_P(RecurrentBlocks, ThreadsDoNotChangeABit) {
  const BlockCase& block = GetParam();
  const std::vector<double> x = rows_for(block, 1), dy = rows_for(block, 2);
  BlockJob job{block, kDocuments, 2, LayoutKind::zigzag};
  const BlockResults one = run_block(job, x, dy);
  job.threads = 3;
  const BlockResults three = run_block(job, x, dy);
  EXPECT_EQ(one.y, three.y);
  EXPECT_EQ(one.dx, three.dx);
  EXPECT_EQ(one.gradients, three.gradients);
}

TEST_P(RecurrentBlocks, ANanDocumentLeavesTheOthersBits) {
  const BlockCase& block = GetParam();
  std::vector<double> x = rows_for(block, 1);
  const std::vector<double> dy = rows_for(block, 2);
  const BlockJob job{block, kDocuments, 3, LayoutKind::zigzag};
  const BlockResults clean = run_block(job, x, dy);
  const std::int64_t begin = 6 * block.hidden, end = 12 * block.hidden;  // the third document
  for (std::int64_t i = begin; i < end; ++i) x[static_cast<std::size_t>(i)] = NAN;
  const BlockResults spoiled = run_block(job, x, dy);
  for (std::int64_t i = 0; i < std::ssize(x); ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (i >= begin && i < end) {
      EXPECT_TRUE(std::isnan(spoiled.y[at]));
      continue;
    }
    EXPECT_EQ(spoiled.y[at], clean.y[at]) << i;
    EXPECT_EQ(spoiled.dx[at], clean.dx[at]) << i;
  }
}

TEST_P(RecurrentBlocks, KeptAndPassingBytesAreWhatIsHeld) {
  const BlockCase& block = GetParam();
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    constexpr std::int64_t kRows = 512;
    parallel::ParameterTable table;
    const auto made = block.make(dtype, table);
    const AttentionCall call = *made->attention_call();
    const attention::HeadMasks mask = attention::Mask::causal(kRows);
    const auto layout = parallel::Layout::make(LayoutKind::contiguous, mask, 1, 1);
    const parallel::CallBytes bytes = parallel::call_bytes(
        {mask, layout, call.shapes, {}, {}, parallel::AttentionOptions().linear_scheme}, 0, {}, {});
    const test::BlockPeaks peaks = test::block_peaks(block, kRows, dtype);
    const PassingBytes passing = made->passing_bytes(kRows, bytes);
    EXPECT_EQ(peaks.kept, made->kept_bytes(kRows) + bytes.kept);
    if (dtype == DType::bfloat16) continue;  // products take panels of memory, whatever the rows
    const auto near = [](std::int64_t predicted, std::int64_t measured) {
      EXPECT_NEAR(static_cast<double>(predicted), static_cast<double>(measured),
                  0.02 * static_cast<double>(measured));
    };
    near(made->kept_bytes(kRows) + passing.forward, peaks.forward);
    near(made->kept_bytes(kRows) + passing.backward, peaks.backward);
  }
}

TEST(LinearLlama, ANormaliserIsForTheBasicKind) {
  parallel::ParameterTable table;
  test::expect_error(runtime::ExitCode::config, "kind gla norms its heads", [&] {
    LinearLlamaShape shape{.kind = LinearLlamaKind::gla, .heads = 1, .head_dim = 2};
    shape.normalize = true;
    LinearLlamaBlock(shape, 0, {"norm", ""}, 0, 1, 1, table);
  });
  test::expect_error(runtime::ExitCode::config, "basic, decay, simple_gla, gla",
                     [] { static_cast<void>(linear_llama_kind_of("lightning")); });
  EXPECT_EQ(linear_llama_kind_of("simple_gla"), LinearLlamaKind::simple_gla);
}

}  // namespace
}  // namespace longhaul::models
