#pragma once
// What a run begins with: checkpoint.initial_load_path.

#include <string>
#include <vector>

#include "launch/train_config.h"
#include "launch/weight_source.h"

namespace longhaul::launch {

/// Holds the model of the weights against [model]: they may differ in what stretches the rotary
/// embedding to another length (is_length_key), and in nothing else. Returns lines for the start:
/// where the weights are from, and every key that differs. `vocab_size`: the run's. Throws
/// Error(config) with every contradiction, both values and what to do.
std::vector<std::string> require_fitting_weights(const WeightSource& source,
                                                 const TrainConfig& config,
                                                 std::int64_t vocab_size);

}  // namespace longhaul::launch
