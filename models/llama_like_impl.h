#pragma once
// Private to the families that grew from Llama: layers of softmax attention and a gated MLP, whose
// differences are plain fields.

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "models/family_impl.h"
#include "models/layer_types.h"

namespace longhaul::models {

// ---- keys

/// What a family takes the absence of a key for.
struct LlamaDefaults {
  std::optional<std::int64_t> num_key_value_heads = {};  ///< none: num_attention_heads
  std::optional<std::int64_t> head_dim = {};  ///< none: hidden_size / num_attention_heads
  double rms_norm_eps = 1e-6, rope_theta = 1e4;
  bool tie_word_embeddings = false;
};
void llama_keys(ModelConfig& config, FamilyKeys& keys, const LlamaDefaults& defaults = {});
/// The words of layer_types in the place of a family's pattern.
void layer_type_keys(ModelConfig& config, FamilyKeys& keys, const char* absent);

/// Of llama_keys() and layer_types.
void check_llama(ModelConfig& config, Judge& judge);
/// Layers that slide have a window.
void check_window(const ModelConfig& config, std::span<const std::string> layers, Judge& judge);

// ---- layers

/// All of one word.
std::vector<std::string> alike_layers(const ModelConfig& config, const char* word);
/// All sliding_attention where there is a sliding_window, else full_attention.
std::vector<std::string> windowed_layers(const ModelConfig& config);
/// layer_types; else sliding_attention where `slides(layer)`, from 0.
template <class Slides>
std::vector<std::string> patterned_layers(const ModelConfig& config, const Slides& slides) {
  if (!config.layer_types.empty()) return config.layer_types;
  std::vector<std::string> layers;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    layers.emplace_back(slides(layer) ? kSlidingAttention : kFullAttention);
  return layers;
}

// ---- models

/// What a family's blocks are made from. The branch is everywhere the same, but for its names.
struct LlamaForm {
  BranchShape branch;
  AttentionShape attention;  ///< its branch and rope are not looked at
  MlpShape mlp;              ///< its branch is not looked at
  std::vector<Rope> ropes;
  std::size_t sliding_rope = 0;  ///< among them, of layers that slide; others take the first
  bool fused_gate_up = false;    ///< one matrix by name
  double embedding_multiplier = 1;
};
/// Llama's own, of complete keys.
LlamaForm llama_form(const ModelConfig& config);
/// `layers`: in words of layer_types.
ModelParts llama_parts(const ModelConfig& config, std::span<const std::string> layers,
                       const LlamaForm& form);

}  // namespace longhaul::models
