#include "launch/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <span>

#include "launch/comparison.h"
#include "launch/plot.h"
#include "launch/report_impl.h"
#include "runtime/counted.h"
#include "runtime/error.h"
#include "runtime/io/corpus.h"
#include "runtime/io/output_file.h"
#include "runtime/size_text.h"

namespace longhaul::launch {

using runtime::counted;
using runtime::ExitCode;
using runtime::fail;

namespace {

std::string ranks_text(const MetricsLog& log) {
  if (log.ranks <= 0) return "baseline";
  return counted(log.ranks, "rank");
}

double relative_difference(double a, double b) {
  if (a == b) return 0;
  return b == 0 ? INFINITY : std::abs(a - b) / std::abs(b);
}

/// Steps in rising order, told as ranges.
class StepRanges {
 public:
  void add(std::int64_t first, std::int64_t last) {
    count_ += last - first + 1;
    if (!ranges_.empty() && ranges_.back().second + 1 == first) {
      ranges_.back().second = last;
    } else {
      ranges_.push_back({first, last});
    }
  }
  /// "step 9", "steps 3 to 5 and 9"; "" for none.
  std::string text() const {
    if (ranges_.empty()) return "";
    std::string text = count_ == 1 ? "step " : "steps ";
    const std::size_t shown = std::min<std::size_t>(ranges_.size(), 8);
    for (std::size_t i = 0; i < shown; ++i) {
      const auto [first, last] = ranges_[i];
      if (i > 0) text += i + 1 == ranges_.size() ? " and " : ", ";
      text += first == last ? grouped(first) : grouped(first) + " to " + grouped(last);
    }
    if (shown < ranges_.size()) text += fmt::format(" and others, {} in all", grouped(count_));
    return text;
  }
  bool one() const { return count_ == 1; }

 private:
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges_;
  std::int64_t count_ = 0;
};

template <class Metrics>
StepRanges more_than_once(const std::vector<Metrics>& rows) {
  std::map<std::int64_t, int> counts;
  for (const Metrics& row : rows) ++counts[row.step];
  StepRanges twice;
  for (const auto& [step, count] : counts) {
    if (count > 1) twice.add(step, step);
  }
  return twice;
}

StepRanges missing_steps(const MetricsLog& log) {
  std::set<std::int64_t> steps{0};
  for (const StepMetrics& step : log.steps) {
    if (step.step > 0) steps.insert(step.step);
  }
  StepRanges missing;
  for (auto step = steps.begin(), next = std::next(step); next != steps.end(); step = next++) {
    if (*next - *step > 1) missing.add(*step + 1, *next - 1);
  }
  return missing;
}

std::string validation_text(const MetricsLog& log) {
  const ValidationMetrics& last = log.validations.back();
  const ValidationMetrics* best = nullptr;
  for (const ValidationMetrics& row : log.validations) {
    if (std::isfinite(row.loss) && (best == nullptr || row.loss < best->loss)) best = &row;
  }
  std::string text = std::isfinite(last.loss)
                         ? fmt::format("{:.4f} nats a token (step {})", last.loss, last.step)
                         : fmt::format("without labels (step {})", last.step);
  if (best != nullptr)
    text += fmt::format("; the best of {} is {:.4f} (step {})", log.validations.size(), best->loss,
                        best->step);
  return text;
}

// NaN, too, counts as a difference.
double larger(double a, double b) { return std::isnan(b) ? INFINITY : std::max(a, b); }

}  // namespace

PlotSeries loss_series(const MetricsLog& log, std::string name, std::string color) {
  PlotSeries series{std::move(name), std::move(color), false, 1.8, {}};
  for (const StepMetrics& step : log.steps) {
    if (!unlabelled(step) && log.pretended.empty())
      series.points.push_back({static_cast<double>(step.step), step.loss});
  }
  return series;
}

PlotSeries validation_series(const MetricsLog& log, std::string name, std::string color) {
  PlotSeries series{std::move(name), std::move(color), false, 1.8, {}, true};
  for (const ValidationMetrics& row : log.validations)
    series.points.push_back({static_cast<double>(row.step), row.loss});
  return series;
}

PlotSeries entropy_series(double unigram_entropy, std::int64_t first_step, std::int64_t last_step) {
  return {fmt::format("unigram entropy of the corpus, {:.3f}", unigram_entropy),
          "#888",
          true,
          1.4,
          {{static_cast<double>(first_step), unigram_entropy},
           {static_cast<double>(last_step), unigram_entropy}}};
}

std::vector<const StepMetrics*> labelled_steps(const MetricsLog& log) {
  std::vector<const StepMetrics*> steps;
  for (const StepMetrics& step : log.steps)
    if (!unlabelled(step)) steps.push_back(&step);
  return steps;
}

double typical(std::span<const StepMetrics* const> steps, double StepMetrics::*field) {
  std::vector<double> values;
  for (const StepMetrics* step : steps.size() > 1 ? steps.subspan(1) : steps)
    values.push_back(step->*field);
  if (values.empty()) return NAN;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::int64_t most_memory(const MetricsLog& log) {
  std::int64_t memory = 0;
  for (const StepMetrics& step : log.steps) memory = std::max(memory, step.memory_bytes);
  return memory;
}

Parity compare_runs(const MetricsLog& run, const MetricsLog& baseline) {
  std::map<std::int64_t, const StepMetrics*> by_step;
  for (const StepMetrics& step : baseline.steps) by_step[step.step] = &step;
  Parity parity;
  for (const StepMetrics& step : run.steps) {
    const auto found = by_step.find(step.step);
    if (found == by_step.end()) continue;
    ++parity.steps;
    if (unlabelled(step) && unlabelled(*found->second)) continue;
    parity.loss = larger(parity.loss, relative_difference(step.loss, found->second->loss));
    parity.grad_norm =
        larger(parity.grad_norm, relative_difference(step.grad_norm, found->second->grad_norm));
  }
  return parity;
}

std::string uneven_steps(const MetricsLog& log) {
  std::string text;
  const auto say = [&](const StepRanges& ranges, const char* one, const char* many,
                       const char* what) {
    if (ranges.text().empty()) return;
    text += fmt::format("{}{}{} {} {}", text.empty() ? "" : "; ", ranges.one() ? one : many,
                        ranges.text(), ranges.one() ? "is" : "are", what);
  };
  say(missing_steps(log), "", "", "missing");
  say(more_than_once(log.steps), "", "", "there twice or more");
  say(more_than_once(log.validations), "the validation of ", "the validations of ",
      "there twice or more");
  return text;
}

std::string loss_plot_svg(const MetricsLog& run, std::optional<double> unigram_entropy,
                          const MetricsLog* baseline, const std::string& title) {
  LinePlot plot;
  plot.title = title;
  plot.x_label = "optimizer step";
  plot.y_label = "loss (nats a token)";
  if (unigram_entropy && !run.steps.empty())
    plot.series.push_back(
        entropy_series(*unigram_entropy, run.steps.front().step, run.steps.back().step));
  plot.series.push_back(
      loss_series(run, run.ranks > 0 ? "loss, " + ranks_text(run) : "loss", "#1f5fa8"));
  if (!run.validations.empty())
    plot.series.push_back(validation_series(run, "validation loss", "#2a8a3e"));
  if (baseline != nullptr) {
    PlotSeries series = loss_series(*baseline, "loss, " + ranks_text(*baseline), "#e07b00");
    series.dashed = true;
    plot.series.push_back(std::move(series));
  }
  return line_plot_svg(plot);
}

std::string summary_table(const MetricsLog& run, std::optional<double> unigram_entropy,
                          const MetricsLog* baseline) {
  std::string table;
  const auto row = [&table](const char* label, const std::string& text) {
    table += fmt::format("{:<18}{}\n", label, text);
  };
  const auto whole_file = [&] {
    if (!run.validations.empty()) row("validation loss", validation_text(run));
    for (const MetricsLog* log : {&run, baseline}) {
      const std::string uneven = log == nullptr ? "" : uneven_steps(*log);
      if (!uneven.empty()) row(log == &run ? "steps" : "baseline's steps", uneven);
    }
  };
  if (run.steps.empty()) {
    row("steps", "none recorded");
    whole_file();
    return table;
  }
  if (!run.pretended.empty())
    row("pretended", "attention took the time of a model (" + run.pretended +
                         "): no time here is measured, and there is no loss");
  const char* const pretended = run.pretended.empty() ? "" : ", pretended";
  const std::vector<const StepMetrics*> steps = labelled_steps(run);
  if (const auto without = run.steps.size() - steps.size(); without > 0)
    row("without labels",
        fmt::format("{} step{}, which updated nothing", without, without == 1 ? "" : "s"));
  if (!steps.empty()) {
    const StepMetrics& first = *steps.front();
    const StepMetrics& last = *steps.back();
    if (run.pretended.empty()) {
      row("loss, first", fmt::format("{:.4f} nats a token (step {})", first.loss, first.step));
      row("loss, last", fmt::format("{:.4f} nats a token (step {})", last.loss, last.step));
    }
    if (unigram_entropy && run.pretended.empty()) {
      row("unigram entropy", fmt::format("{:.4f} nats a token; the last loss is {:.2f} of it",
                                         *unigram_entropy, last.loss / *unigram_entropy));
    }
    row("tokens/s",
        fmt::format("{} (median step{})",
                    grouped(std::llround(typical(steps, &StepMetrics::tokens_per_second))),
                    pretended));
    if (run.pretended.empty())
      row("MFU", fmt::format("{:.1f}% (median step)", 100 * typical(steps, &StepMetrics::mfu)));
    if (const double straggling = typical(steps, &StepMetrics::straggler_seconds);
        std::isfinite(straggling)) {
      row("attention",
          fmt::format("{:.3g} s a rank and step, and {:.3g} s more on the slowest rank, {:.2f} of "
                      "the mean (median step{})",
                      typical(steps, &StepMetrics::attention_seconds), straggling,
                      typical(steps, &StepMetrics::attention_imbalance), pretended));
    }
  }
  double seconds = 0;
  for (const StepMetrics& step : run.steps) seconds += step.seconds;
  row("memory", fmt::format("{} a rank at most", runtime::size_text(most_memory(run))));
  row("training time", duration_text(seconds) + " in " + counted(std::ssize(run.steps), "step"));
  whole_file();
  if (baseline != nullptr) {
    const Parity parity = compare_runs(run, *baseline);
    const std::string label = ranks_text(*baseline);
    if (parity.steps == 0) {
      row("parity", "no step in common with " + label);
    } else {
      row("parity",
          fmt::format("with {} over {}: losses differ by at most {:.1e}, gradient norms by "
                      "{:.1e} (relative)",
                      label, counted(parity.steps, "step"), parity.loss, parity.grad_norm));
    }
  }
  return table;
}

namespace {

/// Limits that no run could be judged by are refused before anything is read or written.
void check_options(const ReportOptions& options) {
  const auto check = [](const char* name, const std::optional<double>& limit, bool zero) {
    if (!limit || (std::isfinite(*limit) && (*limit > 0 || (zero && *limit == 0)))) return;
    fail(ExitCode::usage, name, " is ", *limit, "; expected a number ",
         zero ? "of at least 0" : "above 0");
  };
  check("--max-entropy-ratio", options.max_entropy_ratio, false);
  check("--max-parity", options.max_parity, true);
  if (options.metrics_paths.size() > 1 && !options.baseline_path.empty())
    fail(ExitCode::usage, "--baseline compares one run with another; METRICS are ",
         options.metrics_paths.size(), " runs, which one table holds without it");
  if (options.max_parity && options.baseline_path.empty())
    fail(ExitCode::usage, "--max-parity needs --baseline METRICS, the run to compare with");
}

/// Throws unless the run keeps the limits asked for. What is not a number keeps none.
void check_limits(const ReportOptions& options, const NamedRun& named,
                  std::optional<double> entropy, const MetricsLog* baseline) {
  const MetricsLog& run = named.log;
  const std::string which = options.metrics_paths.size() > 1 ? named.name + ": " : "";
  if (options.max_entropy_ratio) {
    const std::vector<const StepMetrics*> steps = labelled_steps(run);
    if (steps.empty() || !run.pretended.empty())
      fail(ExitCode::internal, which, "--max-entropy-ratio: the run has no loss",
           run.pretended.empty() ? " yet" : ": its attention was pretended");
    if (!entropy)
      fail(ExitCode::internal,
           "--max-entropy-ratio: the metrics hold no unigram entropy; name the "
           "corpus with --corpus");
    const double ratio = steps.back()->loss / *entropy;
    if (!(ratio <= *options.max_entropy_ratio)) {
      fail(ExitCode::internal, which, "the last loss is ", ratio,
           " of the unigram entropy; expected at most ", *options.max_entropy_ratio);
    }
  }
  if (options.max_parity) {
    LONGHAUL_CHECK(baseline != nullptr, "parity without a baseline");
    const Parity parity = compare_runs(run, *baseline);
    if (parity.steps == 0)
      fail(ExitCode::internal, "--max-parity: the run has no step in common with the baseline");
    const double worst = larger(parity.loss, parity.grad_norm);
    if (!(worst <= *options.max_parity)) {
      fail(ExitCode::internal, "losses or gradient norms differ from the baseline by ", worst,
           "; expected at most ", *options.max_parity);
    }
  }
}

/// The file that `option` names, judged before anything is read; none without a path.
std::optional<runtime::OutputFile> output(const ReportOptions& options, const char* option,
                                          const std::string& path) {
  if (path.empty()) return std::nullopt;
  std::vector<std::filesystem::path> inputs = {options.baseline_path, options.corpus_path};
  for (const std::string& metrics : options.metrics_paths)
    inputs.push_back(named_path(metrics).second);
  runtime::require_no_input(path, option, inputs);
  return runtime::OutputFile(
      path, options.force ? runtime::Existing::replace : runtime::Existing::refuse);
}

/// The corpus's unigram entropy: --corpus's, or what the runs' metrics hold; none where they
/// differ.
std::optional<double> entropy_of(const ReportOptions& options, std::span<const NamedRun> runs) {
  if (!options.corpus_path.empty()) {
    const runtime::Corpus corpus = runtime::Corpus::open(options.corpus_path);
    const std::optional<double> entropy = corpus.info().unigram_entropy;
    return entropy ? entropy : corpus.measure_unigram_entropy();
  }
  const std::optional<double> entropy = runs.front().log.unigram_entropy;
  const bool same = std::ranges::all_of(
      runs, [&](const NamedRun& run) { return run.log.unigram_entropy == entropy; });
  return same ? entropy : std::nullopt;
}

}  // namespace

int run_report(const ReportOptions& options) {
  check_options(options);
  const std::optional<runtime::OutputFile> plot = output(options, "--plot", options.plot_path),
                                           times = output(options, "--plot-times",
                                                          options.plot_times_path);
  if (plot && times && plot->target() == times->target())
    fail(ExitCode::usage, "--plot-times ", options.plot_times_path,
         ": is --plot's file too; expected another");
  std::vector<NamedRun> runs;
  for (const std::string& path : options.metrics_paths) runs.push_back(read_named_run(path));
  std::optional<MetricsLog> baseline;
  if (!options.baseline_path.empty()) baseline = read_metrics(options.baseline_path);
  const MetricsLog* other = baseline ? &*baseline : nullptr;
  const std::optional<double> entropy = entropy_of(options, runs);
  const MetricsLog& first = runs.front().log;
  const bool one = runs.size() == 1;
  if (plot)
    write_output(*plot, one ? loss_plot_svg(first, entropy, other, "Training loss")
                            : losses_plot_svg(runs, entropy, "Training loss"));
  if (times) write_output(*times, step_times_plot_svg(runs, "Step time against sequence length"));
  std::fputs((one ? summary_table(first, entropy, other) : comparison_table(runs)).c_str(), stdout);
  if (!one && (plot || times)) fmt::print("\n");
  if (plot) fmt::print("{:<18}{}\n", one ? "loss curve" : "loss curves", options.plot_path);
  if (times) fmt::print("{:<18}{}\n", "step times", options.plot_times_path);
  for (const NamedRun& run : runs) check_limits(options, run, entropy, other);
  return 0;
}

}  // namespace longhaul::launch
