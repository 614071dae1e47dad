#pragma once
// What all ranks of a job must have in common.

#include "launch/train_config.h"
#include "runtime/comm/communicator.h"
#include "runtime/io/corpus.h"

namespace longhaul::launch {

/// Collective: throws Error(disagree) where ranks differ in the program, the corpus or a key of the
/// configuration, each of which names itself.
void check_common_ground(const TrainConfig& config, const runtime::Corpus& corpus,
                         runtime::Communicator& world);

}  // namespace longhaul::launch
