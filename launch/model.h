#pragma once
// The one place that turns a configuration into a model.

#include <cstdint>

#include "launch/train_config.h"
#include "models/model.h"

namespace longhaul::launch {

/// The model of a configuration that load_config() found nothing wrong with, over `vocabulary`
/// tokens. It holds no weights yet.
models::Model make_model(const TrainConfig& config, std::int64_t vocabulary);

}  // namespace longhaul::launch
