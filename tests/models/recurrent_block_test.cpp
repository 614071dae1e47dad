// Blocks around a recurrence against their definitions in double, over ranks and documents.
#include "models/recurrent_block.h"

#include <gtest/gtest.h>

#include <cmath>

#include "models/linear_llama_block.h"
#include "parallel/call_bytes.h"
#include "runtime/ops/matmul.h"
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

/// What a rank's call takes, with the convolution's halos.
parallel::CallBytes bytes_of(const AttentionCall& call, const attention::HeadMasks& mask,
                             const parallel::Layout& layout, int rank) {
  parallel::CallBytes bytes = parallel::call_bytes(
      {mask, layout, call.shapes, {}, {}, parallel::AttentionOptions().linear_scheme}, rank, {},
      {});
  if (!call.halo) return bytes;
  const parallel::CallBytes halo =
      parallel::halo_bytes({layout, attention::independent_parts(mask), call.halo->width,
                            call.halo->channels, call.halo->activation},
                           rank);
  bytes.kept += halo.kept;
  bytes.backward = std::max(bytes.backward, halo.backward);
  bytes.staged = std::max(bytes.staged, halo.staged);
  return bytes;
}

TEST_P(RecurrentBlocks, KeptAndPassingBytesAreWhatIsHeld) {
  const BlockCase& block = GetParam();
  const std::vector<std::int64_t> documents = {1301, 4023};
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const int ranks : {1, 3}) {
      const BlockJob job{block, documents, ranks, LayoutKind::zigzag, dtype};
      const attention::HeadMasks mask =
          attention::Mask::documents(std::vector<std::int64_t>{0, 1301, 5324});
      const auto layout = parallel::Layout::make(job.layout, mask, 1, ranks);
      parallel::ParameterTable table;
      const auto made = block.make(dtype, table);
      const auto peaks = test::block_peaks(job);
      for (int rank = 0; rank < ranks; ++rank) {
        SCOPED_TRACE(runtime::concat(name(dtype), " rank ", rank, " of ", ranks));
        const std::int64_t rows = layout.rows(rank);
        const parallel::CallBytes call = bytes_of(*made->attention_call(), mask, layout, rank);
        const PassingBytes passing = made->passing_bytes(rows, call);
        const std::int64_t kept = made->kept_bytes(rows) + call.kept;
        const test::BlockPeaks& of = peaks[static_cast<std::size_t>(rank)];
        EXPECT_EQ(of.kept, kept);
        const auto expect = [&](std::int64_t predicted, std::int64_t measured) {
          const auto held = static_cast<double>(measured);
          // What the estimate counts apart: messages, and panels of products.
          const std::int64_t apart =
              call.staged + runtime::ops::kSmallMatmulScratchBytes +
              runtime::ops::cpu_matmul_scratch_bytes(dtype, 1, rows * table.elements());
          EXPECT_LE(static_cast<double>(predicted), 1.02 * held);
          EXPECT_GE(static_cast<double>(predicted + apart), 0.98 * held);
        };
        expect(kept + passing.forward, of.forward);
        expect(kept + passing.backward, of.backward);
      }
    }
  }
}

TEST(RecurrentBlocks, ParametersBeginAsPublished) {
  const runtime::Stream stream = runtime::Stream::cpu("one", 1);
  for (const BlockCase& block : test::recurrent_cases()) {
    SCOPED_TRACE(block.name);
    parallel::ParameterTable table;
    const auto made = block.make(DType::float32, table);
    ParameterStore store(table, DType::float32, stream);
    store.initialise(3, stream);
    for (const parallel::Parameter& parameter : table.parameters()) {
      const auto values = test::read(store.value(parameter.name), stream);
      const auto within = [&](double low, double high, auto&& of) {
        for (const double value : values) {
          EXPECT_GE(of(value), low) << parameter.name;
          EXPECT_LE(of(value), high) << parameter.name;
        }
        if (low < high) {
          EXPECT_NE(values.front(), values.back()) << parameter.name;
        }
      };
      const auto plain = [](double value) { return value; };
      const auto ends = [&](const char* with) { return parameter.name.ends_with(with); };
      const bool gdn = block.name.starts_with("GatedDelta");
      const bool matrix = parameter.sizes.size() == 2;
      EXPECT_EQ(parameter.weight_decay, matrix) << parameter.name;
      if (matrix) continue;
      if (ends("conv1d.weight")) {
        const double reach = 1 / std::sqrt(static_cast<double>(parameter.sizes.back()));
        within(-reach, reach, plain);
      } else if (ends("A_log")) {
        const bool bounded = block.name == "KdaBounded";
        within(gdn ? 0.01 : 1, bounded ? 1 : 16, [](double value) { return std::exp(value); });
      } else if (ends("dt_bias") && !gdn) {
        within(0.001, 0.1, [](double value) { return std::log1p(std::exp(value)) * (1 + 1e-9); });
      } else if (ends("bias") && !ends("dt_bias")) {
        within(0, 0, plain);
      } else {
        within(1, 1, plain);
      }
    }
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
