#include "launch/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "runtime/size_text.h"

namespace longhaul::launch {

std::string duration_text(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const auto whole = std::llround(seconds);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  const auto minutes = whole / 60;
  if (minutes < 24 * 60) return fmt::format("{}h{:02}m", minutes / 60, minutes % 60);
  return fmt::format("{}d{:02}h", minutes / 1440, minutes % 1440 / 60);
}

Straggler straggler_of(std::span<const double> seconds) {
  const double sum = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  if (!(sum > 0)) return {std::nan(""), std::nan(""), std::nan("")};
  const double mean = sum / static_cast<double>(seconds.size()), most = std::ranges::max(seconds);
  return {mean, most - mean, most / mean};
}

bool unlabelled(const StepMetrics& metrics) {
  return metrics.labels == 0 && std::isnan(metrics.loss);
}

std::string to_string(const CorpusPart& part, std::int64_t steps) {
  using runtime::counted;
  return fmt::format(
      "{:.2f}% of sequences from {}: {}, {} an epoch, {:.2f} epochs in {}{}{}", 100 * part.share,
      part.path, counted(part.tokens, "token"), counted(part.sequences_per_epoch, "sequence"),
      part.epochs, counted(steps, "step"),
      part.unigram_entropy ? fmt::format(", unigram entropy {:.4f} nats", *part.unigram_entropy)
                           : "",
      part.label_weights.empty() ? "" : ", label weights " + part.label_weights);
}

namespace {
/// The figure, or "-".
std::string known(const char* format, double value) {
  return std::isnan(value) ? "-" : fmt::format(fmt::runtime(format), value);
}
}  // namespace

std::string console_line(const StepMetrics& metrics, const ConsoleContext& context) {
  const char* const pretended = context.pretended ? " | pretended" : "";
  if (unlabelled(metrics)) {
    return fmt::format("step {}/{}{} | no labels, nothing updated | lr {:.2e} | eta {}",
                       metrics.step, context.steps, pretended, metrics.learning_rate,
                       duration_text(context.seconds_left));
  }
  // "61.3/79.1 GiB": one unit where both have the same.
  std::string memory = runtime::size_text(metrics.memory_bytes);
  if (context.memory_total_bytes > 0) {
    const std::string total = runtime::size_text(context.memory_total_bytes);
    const std::string unit = total.substr(total.find(' '));
    if (memory.ends_with(unit)) memory.resize(memory.size() - unit.size());
    memory += "/" + total;
  }
  const double share = metrics.seconds > 0 ? 100 * metrics.comm_seconds / metrics.seconds : 0;
  return fmt::format(
      "step {}/{}{} | loss {} | gnorm {} | lr {:.2e} | {} tok/s | mfu {} | mem {} | comm {} | eta "
      "{}",
      metrics.step, context.steps, pretended, known("{:.4f}", metrics.loss),
      known("{:.2f}", metrics.grad_norm), metrics.learning_rate,
      grouped(std::llround(metrics.tokens_per_second)), known("{:.1f}%", 100 * metrics.mfu), memory,
      known("{:.1f}%", share), duration_text(context.seconds_left));
}

std::string console_line(const ValidationMetrics& metrics, std::int64_t steps) {
  const std::string loss = metrics.labels == 0
                               ? "validation without labels"
                               : fmt::format("validation loss {:.4f}", metrics.loss);
  return fmt::format("step {}/{} | {} | {} tokens in {} | {} tok/s", metrics.step, steps, loss,
                     grouped(metrics.tokens), duration_text(metrics.seconds),
                     grouped(std::llround(metrics.tokens_per_second)));
}

}  // namespace longhaul::launch
