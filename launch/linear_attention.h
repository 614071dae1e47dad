#pragma once
// Replay of one call of a recurrence: `longhaul attention --kind`.

#include <memory>

#include "launch/replay.h"

namespace longhaul::launch {

/// Throws Error(config) for an unknown kind or scheme, and for what only softmax attention takes.
void check_linear_options(const AttentionOptions& options);

/// Reads, decides and verifies. Throws as run_attention.
std::unique_ptr<const Replay> make_linear_replay(const AttentionOptions& options, int ranks);

}  // namespace longhaul::launch
