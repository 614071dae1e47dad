#pragma once
// The attention schemes that a configuration asks for, and what is legal.

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/schemes/scheme.h"
#include "runtime/config/config.h"

namespace longhaul::launch {

/// From the texts of the configuration or the command line. Throws Error(config).
parallel::SchemeOptions scheme_options(const std::string& name, const std::string& degrees,
                                       const std::string& nesting, const std::string& around,
                                       const std::string& backward);

/// From `step` on, counted from 1, attention is spread by `scheme`.
struct SchemeChange {
  std::int64_t step = 1;
  parallel::SchemeOptions scheme;
};
/// In step order; the first is of step 1. Throws Error(config) naming the part of
/// context_parallel_switch that is wrong.
std::vector<SchemeChange> scheme_changes(const runtime::TrainConfig& config);

/// Throws Error(config), with the reason and the nearest legal choice, where a scheme of the run
/// does not suit its ranks, heads, layout or mask; while the context degree is -1, what depends on
/// it is left out.
void check_schemes(const runtime::TrainConfig& config);

/// Markdown: every scheme x mask x layout, and the rules on heads and ranks.
std::string legality_table();

}  // namespace longhaul::launch
