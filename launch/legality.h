#pragma once
// Which combinations of scheme, mask, layout, dtype and communicator run, decided before anything
// starts.

#include <string>
#include <vector>

#include "runtime/build_info.h"
#include "runtime/config/config.h"

namespace longhaul::launch {

/// Why this configuration cannot be trained by this build, each reason naming the key and what
/// would do; empty when it can.
std::vector<std::string> illegal_reasons(const runtime::TrainConfig& config,
                                         const runtime::BuildInfo& build);

/// Throws Error(config) with all reasons, one a line.
void require_legal(const runtime::TrainConfig& config);

}  // namespace longhaul::launch
