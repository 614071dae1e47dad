// Plans for the published batches, beside those of DistCA's own planner.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "parallel/disaggregation/tasks.h"
#include "runtime/error.h"
#include "tests/support/balance_batches.h"
#include "tests/support/document_mixes.h"

namespace longhaul::parallel {
namespace {

constexpr RowBytes kLlama8B = {8192, 4096, 8192 + 128, 0};  // forward; the reference's

struct Sum {
  double ratio = 0, reference_ratio = 0;
  double bytes = 0, reference_bytes = 0;
  double peak = 0, reference_peak = 0;
  int batches = 0;
};

TEST(BalanceBatches, BalanceAtNoMoreBytesThanThePublishedPlanner) {
  const std::string batches = "balance_batches_open.csv.gz", figures = "balance_reference_open.csv";
  for (const std::string& file : {batches, figures}) {
    if (!test::reference_data(file)) GTEST_SKIP() << test::no_reference_data(file);
  }
  const test::BalanceReferences references =
      test::read_balance_references(*test::reference_data(figures), "0.05");
  std::map<std::string, Sum> cells;
  for (const auto& batch : test::read_balance_batches(*test::reference_data(batches))) {
    SCOPED_TRACE(runtime::concat(batch.cell(), ", batch ", batch.batch));
    const test::BalanceReference& reference = references.at(batch.cell()).at(batch.batch);
    std::vector<std::int64_t> documents{0};
    for (const std::int64_t length : batch.lengths) documents.push_back(documents.back() + length);
    const attention::HeadMasks masks = attention::Mask::documents(documents);
    const Layout layout = Layout::make(LayoutKind::packed, masks, 1, batch.servers);
    // Before any move, the reference's own figures: areas, and keys of cut documents.
    TaskInputs inputs{documents, layout, {}, 1000, kLlama8B};
    const TaskPlan before = plan_tasks(inputs);
    ASSERT_EQ(std::ranges::max(before.areas), reference.area_max_before);
    ASSERT_EQ(plan_bytes(before, inputs).total(), reference.key_bytes_before);

    inputs.tolerance = 0.05;
    const TaskPlan plan = plan_tasks(inputs);
    const PlanBytes bytes = plan_bytes(plan, inputs);
    const auto area =
        static_cast<double>(std::accumulate(plan.areas.begin(), plan.areas.end(), std::int64_t{0}));
    ASSERT_EQ(area, reference.area_mean * batch.servers);
    const double ratio = static_cast<double>(std::ranges::max(plan.areas)) * batch.servers / area;
    EXPECT_LE(ratio, 1.05);  // of all batches: the quantum permits it in each
    Sum& cell = cells[batch.cell()];
    cell.ratio += ratio;
    cell.reference_ratio += reference.ratio_after;
    cell.bytes += static_cast<double>(bytes.total());
    cell.reference_bytes += static_cast<double>(reference.total_bytes);
    cell.peak += static_cast<double>(bytes.peak_received());
    cell.reference_peak += static_cast<double>(reference.peak_receiver_bytes);
    ++cell.batches;
  }
  EXPECT_EQ(cells.size(), 16);
  int comparable = 0;
  for (const auto& [name, cell] : cells) {
    SCOPED_TRACE(name);
    if (cell.reference_ratio / cell.batches > 1.10) continue;
    ++comparable;
    EXPECT_LE(cell.bytes, 1.06 * cell.reference_bytes);
    EXPECT_LE(cell.peak, 1.2 * cell.reference_peak);
  }
  EXPECT_EQ(comparable, 7);
}

}  // namespace
}  // namespace longhaul::parallel
