#pragma once
// What the reports of one run and of several take from a run's metrics.

#include <span>
#include <string>
#include <vector>

#include "launch/metrics.h"
#include "launch/plot.h"

namespace longhaul::launch {

/// The loss over steps; the line goes on over steps that have none.
PlotSeries loss_series(const MetricsLog& log, std::string name, std::string color);
/// The validation loss over steps, with dots.
PlotSeries validation_series(const MetricsLog& log, std::string name, std::string color);
/// A dashed level from the first recorded step to the last.
PlotSeries entropy_series(double unigram_entropy, std::int64_t first_step, std::int64_t last_step);

/// Steps that had a loss, first to last.
std::vector<const StepMetrics*> labelled_steps(const MetricsLog& log);

/// The middle value over the steps after the first, which also pays for what is set up on first
/// use. NaN without steps.
double typical(std::span<const StepMetrics* const> steps, double StepMetrics::*field);

/// What a rank took of memory at most, in any step.
std::int64_t most_memory(const MetricsLog& log);

}  // namespace longhaul::launch
