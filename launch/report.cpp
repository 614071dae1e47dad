#include "launch/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <span>

#include "launch/plot.h"
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

PlotSeries loss_series(const MetricsLog& log, std::string name, std::string color) {
  PlotSeries series{std::move(name), std::move(color), false, 1.8, {}};
  for (const StepMetrics& step : log.steps) {  // the line goes on over steps that have no loss
    if (!unlabelled(step)) series.points.push_back({static_cast<double>(step.step), step.loss});
  }
  return series;
}

std::string ranks_text(const MetricsLog& log) {
  if (log.ranks <= 0) return "baseline";
  return counted(log.ranks, "rank");
}

// Steps that had a loss, first to last.
std::vector<const StepMetrics*> labelled_steps(const MetricsLog& log) {
  std::vector<const StepMetrics*> steps;
  for (const StepMetrics& step : log.steps)
    if (!unlabelled(step)) steps.push_back(&step);
  return steps;
}

// The middle value over the steps after the first, which also pays for what is set up on first use.
double typical(std::span<const StepMetrics* const> steps, double StepMetrics::*field) {
  std::vector<double> values;
  for (const StepMetrics* step : steps.size() > 1 ? steps.subspan(1) : steps)
    values.push_back(step->*field);
  if (values.empty()) return NAN;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
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

PlotSeries validation_series(const MetricsLog& log) {
  PlotSeries series{"validation loss", "#2a8a3e", false, 1.8, {}, true};
  for (const ValidationMetrics& row : log.validations)
    series.points.push_back({static_cast<double>(row.step), row.loss});
  return series;
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
  if (unigram_entropy && !run.steps.empty()) {
    const auto first = static_cast<double>(run.steps.front().step);
    const auto last = static_cast<double>(run.steps.back().step);
    plot.series.push_back({fmt::format("unigram entropy of the corpus, {:.3f}", *unigram_entropy),
                           "#888",
                           true,
                           1.4,
                           {{first, *unigram_entropy}, {last, *unigram_entropy}}});
  }
  plot.series.push_back(
      loss_series(run, run.ranks > 0 ? "loss, " + ranks_text(run) : "loss", "#1f5fa8"));
  if (!run.validations.empty()) plot.series.push_back(validation_series(run));
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
  const std::vector<const StepMetrics*> steps = labelled_steps(run);
  if (const auto without = run.steps.size() - steps.size(); without > 0)
    row("without labels",
        fmt::format("{} step{}, which updated nothing", without, without == 1 ? "" : "s"));
  if (!steps.empty()) {
    const StepMetrics& first = *steps.front();
    const StepMetrics& last = *steps.back();
    row("loss, first", fmt::format("{:.4f} nats a token (step {})", first.loss, first.step));
    row("loss, last", fmt::format("{:.4f} nats a token (step {})", last.loss, last.step));
    if (unigram_entropy) {
      row("unigram entropy", fmt::format("{:.4f} nats a token; the last loss is {:.2f} of it",
                                         *unigram_entropy, last.loss / *unigram_entropy));
    }
    row("tokens/s",
        fmt::format("{} (median step)",
                    grouped(std::llround(typical(steps, &StepMetrics::tokens_per_second)))));
    row("MFU", fmt::format("{:.1f}% (median step)", 100 * typical(steps, &StepMetrics::mfu)));
  }
  std::int64_t memory = 0;
  double seconds = 0;
  for (const StepMetrics& step : run.steps) {
    memory = std::max(memory, step.memory_bytes);
    seconds += step.seconds;
  }
  row("memory", fmt::format("{} a rank at most", runtime::size_text(memory)));
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
  if (options.max_parity && options.baseline_path.empty())
    fail(ExitCode::usage, "--max-parity needs --baseline METRICS, the run to compare with");
}

/// Throws unless the run keeps the limits asked for. What is not a number keeps none.
void check_limits(const ReportOptions& options, const MetricsLog& run,
                  std::optional<double> entropy, const MetricsLog* baseline) {
  if (options.max_entropy_ratio) {
    const std::vector<const StepMetrics*> steps = labelled_steps(run);
    if (steps.empty()) fail(ExitCode::internal, "--max-entropy-ratio: the run has no loss yet");
    if (!entropy)
      fail(ExitCode::internal,
           "--max-entropy-ratio: the metrics hold no unigram entropy; name the "
           "corpus with --corpus");
    const double ratio = steps.back()->loss / *entropy;
    if (!(ratio <= *options.max_entropy_ratio)) {
      fail(ExitCode::internal, "the last loss is ", ratio,
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

}  // namespace

int run_report(const ReportOptions& options) {
  check_options(options);
  std::optional<runtime::OutputFile> plot;
  if (!options.plot_path.empty()) {
    runtime::require_no_input(options.plot_path, "--plot",
                              {options.metrics_path, options.baseline_path, options.corpus_path});
    plot.emplace(options.plot_path,
                 options.force ? runtime::Existing::replace : runtime::Existing::refuse);
  }
  const MetricsLog run = read_metrics(options.metrics_path);
  std::optional<MetricsLog> baseline;
  if (!options.baseline_path.empty()) baseline = read_metrics(options.baseline_path);
  std::optional<double> entropy = run.unigram_entropy;
  if (!options.corpus_path.empty()) {
    const runtime::Corpus corpus = runtime::Corpus::open(options.corpus_path);
    entropy = corpus.info().unigram_entropy;
    if (!entropy) entropy = corpus.measure_unigram_entropy();
  }
  const MetricsLog* other = baseline ? &*baseline : nullptr;
  if (plot) write_output(*plot, loss_plot_svg(run, entropy, other, "Training loss"));
  std::fputs(summary_table(run, entropy, other).c_str(), stdout);
  if (!options.plot_path.empty()) fmt::print("{:<18}{}\n", "loss curve", options.plot_path);
  check_limits(options, run, entropy, other);
  return 0;
}

}  // namespace longhaul::launch
