#pragma once
// What holds for a whole run, gathered from what it is made of.

#include "launch/corpora.h"
#include "launch/metrics.h"
#include "launch/trainer.h"
#include "launch/validation_data.h"

namespace longhaul::launch {

/// What MFU counts, in words.
inline constexpr const char* kFlopConvention =
    "model FLOPs: 6 per matrix weight and token, and 12 D per head and visible (query, key) pair; "
    "masked pairs, recomputation and the embedding lookup count nothing";

/// All but what is measured or gathered over ranks, peak_flops, communicator and hosts, and the
/// corpora one by one.
/// `validation` may be null.
RunHeader run_header(const TrainConfig& config, const TrainingCorpora& corpora,
                     const ValidationData* validation, const Trainer& trainer);

}  // namespace longhaul::launch
