#pragma once
// What all ranks of a run must have in common.

#include "launch/corpora.h"
#include "launch/validation_data.h"
#include "runtime/comm/communicator.h"

namespace longhaul::launch {

/// Program, its CPU level, configuration (key by key, so that a difference names itself) and
/// corpora; `validation` may be null. Collective over `world`. Throws Error(disagree) with what
/// differs.
void check_common_ground(const TrainConfig& config, const TrainingCorpora& corpora,
                         const ValidationData* validation, runtime::Communicator& world);

}  // namespace longhaul::launch
