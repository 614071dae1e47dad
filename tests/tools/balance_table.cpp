// What the planner of attention tasks makes of batches of packed documents, beside DistCA's
// published planner: a row each, then the means of each cell.
//   balance_table BATCHES REFERENCE [TOLERANCE]
// Both files as shared/data/README.md describes them; tolerance 0.05, or one that REFERENCE has.

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <exception>
#include <numeric>

#include "parallel/disaggregation/tasks.h"
#include "tests/support/balance_batches.h"

namespace longhaul {
namespace {

using parallel::RowBytes;
using parallel::TaskInputs;
using parallel::TaskPlan;

// Llama-8B, one layer: 32 query heads and 8 of keys and values of 128, gradients as well in 16
// bits; LSE and delta in fp32.
constexpr RowBytes kForward = {8192, 4096, 8192 + 128, 0};
constexpr RowBytes kBackward = {2 * 8192 + 2 * 128, 4096, 8192, 4096};

/// Figures of a batch, or means of a cell's.
struct Row {
  double documents = 0, before = 0, after = 0, reference = 0;  // largest area over the mean
  double gb = 0, reference_gb = 0, peak = 0, reference_peak = 0;
  double moved = 0, milliseconds = 0, backward_gb = 0, backward_peak = 0;
};

double thread_milliseconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

double gigabytes(std::int64_t bytes) { return 1e-9 * static_cast<double>(bytes); }

Row measure(const test::BalanceBatch& batch, const test::BalanceReference& reference,
            double tolerance) {
  std::vector<std::int64_t> documents{0};
  for (const std::int64_t length : batch.lengths) documents.push_back(documents.back() + length);
  const attention::HeadMasks masks = attention::Mask::documents(documents);
  const auto layout = parallel::Layout::make(parallel::LayoutKind::packed, masks, 1, batch.servers);
  Row row;
  row.documents = static_cast<double>(batch.lengths.size());
  TaskInputs inputs{documents, layout, {}, tolerance, kForward};
  const double begin = thread_milliseconds();
  const TaskPlan plan = plan_tasks(inputs);
  row.milliseconds = thread_milliseconds() - begin;
  const parallel::PlanBytes bytes = plan_bytes(plan, inputs);
  row.before = reference.ratio_before;
  row.after = plan.imbalance;
  row.reference = reference.ratio_after;
  row.gb = gigabytes(bytes.total());
  row.reference_gb = gigabytes(reference.total_bytes);
  row.peak = gigabytes(bytes.peak_received());
  row.reference_peak = gigabytes(reference.peak_receiver_bytes);
  row.moved = static_cast<double>(std::ranges::count_if(
      plan.tasks, [](const parallel::Task& task) { return task.server != task.home; }));
  inputs.bytes = kBackward;
  const parallel::PlanBytes backward = plan_bytes(plan_tasks(inputs), inputs);
  row.backward_gb = gigabytes(backward.total());
  row.backward_peak = gigabytes(backward.peak_received());
  return row;
}

void print(const std::string& name, const Row& row) {
  fmt::print(
      "{:<28}{:>8.0f}{:>8.2f}{:>8.3f}{:>8.3f}{:>9.2f}{:>7.3f}{:>8.2f}{:>7.3f}{:>7.0f}{:>7.1f}"
      "{:>10.2f}{:>8.2f}\n",
      name, row.documents, row.before, row.after, row.reference, row.gb, row.gb / row.reference_gb,
      row.peak, row.peak / row.reference_peak, row.moved, row.milliseconds, row.backward_gb,
      row.backward_peak);
}

void print_head() {
  fmt::print("{:<28}{:>8}{:>24}{:>16}{:>15}{:>7}{:>7}{:>18}\n", "", "", "max/mean area",
             "GB forward", "GB most to one", "tasks", "plan", "GB backward");
  fmt::print("{:<28}{:>8}{:>8}{:>8}{:>8}{:>9}{:>7}{:>8}{:>7}{:>7}{:>7}{:>10}{:>8}\n",
             "mix, context, servers", "docs", "before", "ours", "theirs", "ours", "ratio", "ours",
             "ratio", "moved", "ms", "all", "most");
}

void run(const std::string& batches, const std::string& references, const std::string& tolerance) {
  const auto theirs = test::read_balance_references(references, tolerance);
  std::map<std::string, std::vector<Row>> cells;
  print_head();
  for (const test::BalanceBatch& batch : test::read_balance_batches(batches)) {
    const Row row = measure(batch, theirs.at(batch.cell()).at(batch.batch), std::stod(tolerance));
    print(fmt::format("{}: {}", batch.cell(), batch.batch), row);
    cells[batch.cell()].push_back(row);
  }
  fmt::print("\nMeans\n");
  print_head();
  for (const auto& [name, rows] : cells) {
    Row mean;
    for (double Row::*field :
         {&Row::documents, &Row::before, &Row::after, &Row::reference, &Row::gb, &Row::reference_gb,
          &Row::peak, &Row::reference_peak, &Row::moved, &Row::milliseconds, &Row::backward_gb,
          &Row::backward_peak}) {
      for (const Row& row : rows) mean.*field += row.*field / static_cast<double>(rows.size());
    }
    print(name, mean);
  }
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    fmt::print(stderr, "usage: balance_table BATCHES REFERENCE [TOLERANCE]\n");
    return 64;
  }
  try {
    longhaul::run(argv[1], argv[2], argc == 4 ? argv[3] : "0.05");
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 65;
  }
  return 0;
}
