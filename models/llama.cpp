#include "models/llama.h"

#include <cmath>

#include "models/attention_block.h"
#include "models/mlp_block.h"

namespace longhaul::models {

namespace {
constexpr double kStddev = 0.02;
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";
}  // namespace

Model llama(const LlamaConfig& c, const ModelOptions& options) {
  check(c);
  using enum parallel::Initialisation;
  const std::int64_t h = c.hidden_size, layers = c.num_hidden_layers;
  const double residual = kStddev / std::sqrt(2.0 * static_cast<double>(layers));
  const AttentionShape attention{h,          c.num_attention_heads, c.num_key_value_heads,
                                 c.head_dim, c.rms_norm_eps,        c.dtype};
  const MlpShape mlp{h, c.intermediate_size, c.rms_norm_eps, c.dtype};

  ModelParts parts;
  parts.hidden = h;
  parts.dtype = c.dtype;
  parts.rope_dim = c.head_dim;
  parts.rope_theta = c.rope_theta;
  const LayerMasks masks(c.layer_types, c.sliding_window, layers);
  parts.masks = masks.kinds;

  int group = 0;
  parts.embedding = kEmbedding;
  parts.table.add({kEmbedding, {c.vocab_size, h}, normal, kStddev, false, 0, group, {}});
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    ++group;
    parts.blocks.push_back(
        std::make_unique<AttentionBlock>(attention, masks.of_layer[static_cast<std::size_t>(layer)],
                                         prefix, group, kStddev, residual, parts.table));
    parts.blocks.push_back(
        std::make_unique<MlpBlock>(mlp, prefix, group, kStddev, residual, parts.table));
  }
  ++group;
  parts.table.add({kNorm, {h}, ones, 0, false, -1, group, {}});
  if (!c.tie_word_embeddings)
    parts.table.add({kHead, {c.vocab_size, h}, normal, kStddev, true, 0, group, {}});
  parts.head = {h,       c.vocab_size, c.rms_norm_eps,
                c.dtype, kNorm,        c.tie_word_embeddings ? kEmbedding : kHead};
  return {std::move(parts), options};
}

}  // namespace longhaul::models
