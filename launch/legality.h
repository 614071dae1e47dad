#pragma once
// What a configuration asks for against what exists: refused at start-up, never replaced by
// something else.

#include <string>
#include <vector>

#include "runtime/config/config.h"

namespace longhaul::launch {

/// Every reason why this configuration cannot run in this build, with what would work; empty when
/// it can.
std::vector<std::string> illegal_reasons(const runtime::TrainConfig& config);

/// Throws Error(config) with every reason, one a line.
void require_legal(const runtime::TrainConfig& config);

}  // namespace longhaul::launch
