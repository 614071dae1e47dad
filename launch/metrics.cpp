#include "launch/metrics.h"

#include <fmt/format.h>

#include <cmath>
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

bool unlabelled(const StepMetrics& metrics) {
  return metrics.labels == 0 && std::isnan(metrics.loss);
}

std::string console_line(const StepMetrics& metrics, const ConsoleContext& context) {
  if (unlabelled(metrics)) {
    return fmt::format("step {}/{} | no labels, nothing updated | lr {:.2e} | eta {}", metrics.step,
                       context.steps, metrics.learning_rate, duration_text(context.seconds_left));
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
  const std::string comm = std::isnan(share) ? "-" : fmt::format("{:.1f}%", share);
  return fmt::format(
      "step {}/{} | loss {:.4f} | gnorm {:.2f} | lr {:.2e} | {} tok/s | mfu {:.1f}% | mem {} | "
      "comm {} | eta {}",
      metrics.step, context.steps, metrics.loss, metrics.grad_norm, metrics.learning_rate,
      grouped(std::llround(metrics.tokens_per_second)), 100 * metrics.mfu, memory, comm,
      duration_text(context.seconds_left));
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
