#include "launch/model.h"

#include <fmt/format.h>

#include "models/llama.h"

namespace longhaul::launch {

models::Model make_model(const TrainConfig& config, std::int64_t vocabulary) {
  const ModelConfig& m = config.model;
  models::LlamaConfig llama;
  llama.hidden_size = m.hidden_size;
  llama.intermediate_size = m.intermediate_size;
  llama.num_hidden_layers = m.num_hidden_layers;
  llama.num_attention_heads = m.num_attention_heads;
  llama.num_key_value_heads = m.num_key_value_heads;
  llama.head_dim = m.head_dim;
  llama.rms_norm_eps = m.rms_norm_eps;
  llama.rope_theta = m.rope_theta;
  llama.tie_word_embeddings = m.tie_word_embeddings;
  llama.vocab_size = vocabulary;
  llama.layer_types = m.layer_types;
  llama.sliding_window = m.sliding_window.value_or(0);
  llama.dtype = config.training.dtype;
  models::ModelOptions options;
  options.recompute = config.activation_checkpoint.mode == "full" ? models::Recompute::full
                                                                  : models::Recompute::none;
  return models::llama(llama, options);
}

models::LayerMasks layer_masks(const ModelConfig& model) {
  return {model.layer_types, model.sliding_window.value_or(0), model.num_hidden_layers};
}

std::string layers_text(std::span<const models::MaskKind> kinds) {
  std::string text;
  std::int64_t layers = 0;
  for (const models::MaskKind& kind : kinds) {
    layers += kind.layers;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", kind.layers,
                        models::layer_type_names()[kind.window ? 1 : 0]);
    if (kind.window) text += fmt::format(" (window {})", *kind.window);
  }
  return fmt::format("{}: {}", layers, text);
}

}  // namespace longhaul::launch
