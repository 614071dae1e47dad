#pragma once
// What holds for a whole run, gathered from what it is made of.

#include "launch/metrics.h"
#include "launch/trainer.h"
#include "launch/validation_data.h"
#include "runtime/io/corpus.h"

namespace longhaul::launch {

/// All but what is measured or gathered over ranks: peak_flops, communicator and hosts.
/// `validation` may be null.
RunHeader run_header(const TrainConfig& config, const runtime::Corpus& corpus,
                     const ValidationData* validation, const Trainer& trainer);

}  // namespace longhaul::launch
