#include "launch/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/report.h"
#include "launch/report_impl.h"
#include "runtime/size_text.h"

namespace longhaul::launch {
namespace {

using Json = nlohmann::ordered_json;

/// What the header says of a run, as far as it says it: a run of an older build may say less.
struct ModelFacts {
  std::string name;
  std::optional<std::int64_t> parameters, seq_len;
};

/// At `place`, as "/config/model/architecture", of type T; none where that is absent, null or of
/// another type.
template <class T>
std::optional<T> value_at(const Json& header, const char* place) {
  const Json::json_pointer pointer(place);
  if (!header.contains(pointer)) return std::nullopt;
  const Json& value = header.at(pointer);
  if constexpr (std::is_same_v<T, std::string>) {
    if (!value.is_string()) return std::nullopt;
  } else {
    if (!value.is_number_integer()) return std::nullopt;
  }
  return value.get<T>();
}

/// "3 linear_attention, 1 full_attention", in the order in which the words first come; "4 layers"
/// where the configuration names none.
std::string layers_text(const Json& header) {
  const Json::json_pointer types("/config/model/layer_types");
  std::vector<std::pair<std::string, int>> counts;
  if (header.contains(types) && header.at(types).is_array()) {
    for (const Json& word : header.at(types)) {
      if (!word.is_string()) continue;
      const auto known =
          std::ranges::find(counts, word.get<std::string>(), &std::pair<std::string, int>::first);
      if (known == counts.end()) {
        counts.emplace_back(word.get<std::string>(), 1);
      } else {
        ++known->second;
      }
    }
  }
  std::string text;
  for (const auto& [word, count] : counts) text += fmt::format(", {} {}", count, word);
  if (!text.empty()) return text;
  const auto layers = value_at<std::int64_t>(header, "/config/model/num_hidden_layers");
  return layers ? fmt::format(", {}", runtime::counted(*layers, "layer")) : "";
}

ModelFacts facts_of(const MetricsLog& log) {
  const Json header = Json::parse(log.header_json, nullptr, false);
  ModelFacts facts;
  facts.name =
      value_at<std::string>(header, "/config/model/architecture").value_or("a model of no name") +
      layers_text(header);
  facts.parameters = value_at<std::int64_t>(header, "/parameters");
  facts.seq_len = value_at<std::int64_t>(header, "/config/training/seq_len");
  return facts;
}

std::string grouped_or_dash(const std::optional<std::int64_t>& value) {
  return value ? grouped(*value) : "-";
}

/// The mean loss of the last tenth of the steps, of one at least: steps of a few thousand tokens
/// differ more among themselves than runs do.
double settled_loss(std::span<const StepMetrics* const> steps) {
  const std::size_t count = std::max<std::size_t>(1, steps.size() / 10);
  double sum = 0;
  for (const StepMetrics* step : steps.last(count)) sum += step->loss;
  return sum / static_cast<double>(count);
}

/// The figure, or "-" where there is none.
std::string known(const char* format, double value) {
  return std::isnan(value) ? "-" : fmt::format(fmt::runtime(format), value);
}

std::string table_row(const NamedRun& run) {
  const ModelFacts facts = facts_of(run.log);
  std::int64_t tokens = 0;
  for (const StepMetrics& step : run.log.steps) tokens += step.tokens;
  const std::vector<const StepMetrics*> steps = labelled_steps(run.log);
  std::string figures = "- | - | - | - | - | - | -";
  if (!steps.empty()) {
    figures =
        fmt::format("{} | {} | {} | {:.3g} | {} | {} | {}", known("{:.4f}", steps.front()->loss),
                    known("{:.4f}", steps.back()->loss), known("{:.4f}", settled_loss(steps)),
                    typical(steps, &StepMetrics::seconds),
                    known("{:.3g}", typical(steps, &StepMetrics::straggler_seconds)),
                    known("{:.2f}", typical(steps, &StepMetrics::attention_imbalance)),
                    grouped(std::llround(typical(steps, &StepMetrics::tokens_per_second))));
  }
  std::string name;
  for (const char c : run.name) name += c == '|' ? std::string("\\|") : std::string(1, c);
  return fmt::format("| {} | {} | {} | {} | {} | {} |\n", name, grouped_or_dash(facts.parameters),
                     grouped_or_dash(facts.seq_len), grouped(tokens), figures,
                     runtime::size_text(most_memory(run.log)));
}

struct Stroke {
  std::string color;
  bool dashed = false;
};

/// The strokes of the first, the second, ... curve: colors that are told apart in print and by most
/// eyes, then the same ones dashed.
Stroke stroke_of(std::size_t curve) {
  static constexpr std::array kColors = {"#1f5fa8", "#e07b00", "#2a8a3e", "#b0306a",
                                         "#6b4fa0", "#1a9aa8", "#8a6d1f", "#444444"};
  return {kColors[curve % kColors.size()], curve / kColors.size() % 2 == 1};
}

}  // namespace

std::pair<std::string, std::string> named_path(const std::string& argument) {
  std::error_code unknown;
  const std::size_t equals = argument.find('=');
  if (equals == std::string::npos || equals == 0 || argument.find('/') < equals ||
      std::filesystem::exists(std::filesystem::symlink_status(argument, unknown)))
    return {"", argument};
  return {argument.substr(0, equals), argument.substr(equals + 1)};
}

NamedRun read_named_run(const std::string& argument) {
  NamedRun run;
  std::tie(run.name, run.path) = named_path(argument);
  run.log = read_metrics(run.path);
  if (run.name.empty()) run.name = facts_of(run.log).name;
  if (!run.log.pretended.empty()) run.name += " (pretended)";
  return run;
}

std::string comparison_table(std::span<const NamedRun> runs) {
  std::string table =
      "| run | parameters | sequence | tokens | loss, first | loss, last | mean of the last tenth "
      "| "
      "seconds a step | straggler seconds | slowest attention / mean | tokens/s | memory a rank |\n"
      "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  for (const NamedRun& run : runs) table += table_row(run);
  for (const NamedRun& run : runs) {
    if (const std::string uneven = uneven_steps(run.log); !uneven.empty())
      table += fmt::format("\n{} ({}): {}\n", run.name, run.path, uneven);
  }
  return table;
}

std::string losses_plot_svg(std::span<const NamedRun> runs, std::optional<double> unigram_entropy,
                            const std::string& title) {
  LinePlot plot;
  plot.title = title;
  plot.x_label = "optimizer step";
  plot.y_label = "loss (nats a token)";
  std::int64_t first = INT64_MAX, last = INT64_MIN;
  for (const NamedRun& run : runs) {
    for (const StepMetrics& step : run.log.steps) {
      first = std::min(first, step.step);
      last = std::max(last, step.step);
    }
  }
  if (unigram_entropy && first <= last)
    plot.series.push_back(entropy_series(*unigram_entropy, first, last));
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const NamedRun& run = runs[i];
    const Stroke stroke = stroke_of(i);
    const bool repeated = std::ranges::count(runs, run.name, &NamedRun::name) > 1;
    const std::string name = repeated ? run.name + ", " + run.path : run.name;
    plot.series.push_back(loss_series(run.log, name, stroke.color));
    plot.series.back().dashed = stroke.dashed;
    if (run.log.validations.empty()) continue;
    plot.series.push_back(validation_series(run.log, name + ", validation", stroke.color));
    plot.series.back().dashed = true;
  }
  return line_plot_svg(plot);
}

std::string step_times_plot_svg(std::span<const NamedRun> runs, const std::string& title) {
  LinePlot plot;
  plot.title = title;
  plot.x_label = "sequence length (tokens)";
  plot.y_label = "median step (s)";
  plot.y_from_zero = true;
  for (const NamedRun& run : runs) {
    const std::optional<std::int64_t> seq_len = facts_of(run.log).seq_len;
    const std::vector<const StepMetrics*> steps = labelled_steps(run.log);
    if (!seq_len || steps.empty()) continue;
    auto curve = std::ranges::find(plot.series, run.name, &PlotSeries::name);
    if (curve == plot.series.end()) {
      const Stroke stroke = stroke_of(plot.series.size());
      plot.series.push_back({run.name, stroke.color, stroke.dashed, 1.8, {}, /*dots=*/true});
      curve = std::prev(plot.series.end());
    }
    curve->points.push_back({static_cast<double>(*seq_len), typical(steps, &StepMetrics::seconds)});
  }
  for (PlotSeries& curve : plot.series) std::ranges::sort(curve.points, {}, &PlotPoint::x);
  return line_plot_svg(plot);
}

}  // namespace longhaul::launch
