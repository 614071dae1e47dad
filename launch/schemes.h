#pragma once
// The attention schemes that a configuration asks for.

#include <cstdint>
#include <string>
#include <vector>

#include "launch/config.h"
#include "parallel/schemes/scheme.h"

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
/// In step order; the first is of step 1. Of a configuration that check_schemes() found nothing
/// wrong with.
std::vector<SchemeChange> scheme_changes(const TrainConfig& config);

/// Adds to the draft what is wrong with the schemes of the run, each at the key to blame: texts of
/// options, changes between steps, options that no scheme has a use for, and schemes that do not
/// suit ranks, heads, layout or mask, with the reason and the nearest legal choice. What is not
/// known, such as a context degree of -1, is taken to suit: check again once it is.
void check_schemes(TrainDraft& draft);

}  // namespace longhaul::launch
