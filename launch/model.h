#pragma once
// The one place that turns a configuration into a model.

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "launch/train_config.h"
#include "models/model.h"

namespace longhaul::launch {

/// The model of a configuration that load_config() found nothing wrong with, over `vocabulary`
/// tokens. It holds no weights yet.
models::Model make_model(const TrainConfig& config, std::int64_t vocabulary);

/// After the word layers: "8: 2 full_attention, 6 sliding_attention (window 1024)". `words`: each
/// layer in its family's.
std::string layers_text(std::span<const std::string> words,
                        std::optional<std::int64_t> sliding_window);
std::string layers_text(const ModelConfig& model);

}  // namespace longhaul::launch
