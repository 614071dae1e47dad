#pragma once
// The one place that turns a configuration into a model.

#include <cstdint>
#include <span>
#include <string>

#include "launch/train_config.h"
#include "models/model.h"

namespace longhaul::launch {

/// The model of a configuration that load_config() found nothing wrong with, over `vocabulary`
/// tokens. It holds no weights yet.
models::Model make_model(const TrainConfig& config, std::int64_t vocabulary);

/// What each layer sees.
models::LayerMasks layer_masks(const ModelConfig& model);
/// After the word layers: "8: 2 full_attention, 6 sliding_attention (window 1024)".
std::string layers_text(std::span<const models::MaskKind> kinds);

}  // namespace longhaul::launch
