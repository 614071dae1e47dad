#pragma once
// What came of a run: its loss curve as SVG, and a short table for people. Of several runs
// comparison.h tells.

#include <optional>
#include <string>
#include <vector>

#include "launch/metrics.h"

namespace longhaul::launch {

struct ReportOptions {
  /// metrics.jsonl of one run or several, each as "PATH" or "NAME=PATH"; at least one.
  std::vector<std::string> metrics_paths;
  std::string baseline_path;    ///< metrics.jsonl of the run to compare with; empty for none
  std::string plot_path;        ///< where the SVG of losses goes; empty for none
  std::string plot_times_path;  ///< where the SVG of step times goes; empty for none
  bool force = false;           ///< a plot that is a file already is replaced
  std::string
      corpus_path;  ///< for the unigram entropy where the metrics do not hold it; empty for none
  /// The last loss of each run may be this much of the unigram entropy; more than 0.
  std::optional<double> max_entropy_ratio;
  /// Losses and gradient norms may differ this much from the baseline's; 0: not at all.
  std::optional<double> max_parity;
};

/// The verb `report`: summary_table and loss_plot_svg of one run, comparison_table and
/// losses_plot_svg of several; step_times_plot_svg of either. Throws Error(usage) for a limit that
/// is none or that nothing could be judged by, Error(io), Error(data) for damaged metrics,
/// Error(internal) when the run exceeds a limit or does not hold what it is about.
int run_report(const ReportOptions& options);

/// How far two runs' first steps are apart: the largest |a - b| / |b| over the steps that both
/// have.
struct Parity {
  std::int64_t steps = 0;  ///< compared
  double loss = 0;
  double grad_norm = 0;
};
Parity compare_runs(const MetricsLog& run, const MetricsLog& baseline);

/// Which steps a log does not hold once, as every run's should from step 1 on: "steps 3 to 5 are
/// missing; step 9 is there twice or more; the validation of step 10 is there twice or more". Empty
/// when there are none.
std::string uneven_steps(const MetricsLog& log);

/// Loss over steps; beside it the validation loss, the corpus's unigram entropy and the baseline
/// run where given.
std::string loss_plot_svg(const MetricsLog& run, std::optional<double> unigram_entropy,
                          const MetricsLog* baseline, const std::string& title);

/// Loss first and last beside the unigram entropy, tokens/s, MFU, memory, validation loss, steps
/// twice or missing, parity with the baseline.
std::string summary_table(const MetricsLog& run, std::optional<double> unigram_entropy,
                          const MetricsLog* baseline);

}  // namespace longhaul::launch
