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

/// Whether some layer slides: a layer that layer_types or the family's pattern calls so.
bool has_sliding_layers(const ModelConfig& model);

/// How frequencies of positions follow from the length of the run's sequences: "longrope with
/// long_factor, since training.seq_len = 8192 is above ..."; none where they do not.
std::optional<std::string> rope_text(const ModelConfig& model, std::int64_t seq_len);

}  // namespace longhaul::launch
