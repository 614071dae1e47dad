#pragma once
// Several runs beside each other: one table, their losses in one picture, and how their step times
// grow with the sequence.

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "launch/metrics.h"

namespace longhaul::launch {

struct NamedRun {
  std::string name;  ///< in the table and in legends
  std::string path;  ///< of its metrics.jsonl
  MetricsLog log;
};

/// The name and the path of "NAME=PATH"; of "PATH" the name is empty. What exists as it is written
/// is a path, and a name holds no '/'.
std::pair<std::string, std::string> named_path(const std::string& argument);

/// Reads "NAME=PATH" or "PATH". Without a name, the run's is what its model is:
/// "qwen3_next, 3 linear_attention, 1 full_attention". Throws as read_metrics does.
NamedRun read_named_run(const std::string& argument);

/// A table in Markdown, one row a run: parameters, sequence length, tokens, first and last loss,
/// the mean loss of the last tenth of the steps, seconds of the median step, tokens/s, memory.
/// Steps that are missing or there twice are told below it.
std::string comparison_table(std::span<const NamedRun> runs);

/// The runs' losses over steps, a color each; validation losses are dashed in the same color. A
/// name that several runs have is followed by the path in the legend.
std::string losses_plot_svg(std::span<const NamedRun> runs, std::optional<double> unigram_entropy,
                            const std::string& title);

/// Seconds of the median step over training.seq_len, from 0. Runs of one name make one curve.
std::string step_times_plot_svg(std::span<const NamedRun> runs, const std::string& title);

}  // namespace longhaul::launch
