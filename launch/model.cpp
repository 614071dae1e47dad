#include "launch/model.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/device.h"
#include "models/llama.h"

namespace longhaul::launch {

namespace {

/// Rows of logits at a time on a GPU: within 2 GiB of logits, and so many because each chunk's
/// matmul reads and writes all gradients of the head.
std::int64_t device_chunk_rows(std::int64_t vocabulary) {
  constexpr std::int64_t kBytes = std::int64_t{2} << 30, kLeast = 512, kMost = 8192,
                         kMultiple = 128;
  const std::int64_t rows = kBytes / (vocabulary * runtime::size_bytes(runtime::DType::float32));
  return std::clamp(rows / kMultiple * kMultiple, kLeast, kMost);
}

}  // namespace

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
  if (on_cuda(config)) options.head_chunk_rows = device_chunk_rows(vocabulary);
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
