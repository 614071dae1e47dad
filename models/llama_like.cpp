#include "models/llama_like_impl.h"

#include <algorithm>

namespace longhaul::models {

void llama_keys(ModelConfig& c, FamilyKeys& keys, const LlamaDefaults& defaults) {
  keys.with_default("tie_word_embeddings", c.tie_word_embeddings, defaults.tie_word_embeddings);
  keys.required("intermediate_size", c.intermediate_size);
  keys.required("num_attention_heads", c.num_attention_heads);
  if (defaults.num_key_value_heads) {
    keys.with_default("num_key_value_heads", c.num_key_value_heads, *defaults.num_key_value_heads);
  } else {
    keys.optional("num_key_value_heads", c.num_key_value_heads, "num_attention_heads");
  }
  if (defaults.head_dim) {
    keys.with_default("head_dim", c.head_dim, *defaults.head_dim);
  } else {
    keys.optional("head_dim", c.head_dim, "hidden_size / num_attention_heads");
  }
  keys.with_default("rms_norm_eps", c.rms_norm_eps, defaults.rms_norm_eps);
  rope_keys(c, keys, defaults.rope_theta);
}

void layer_type_keys(ModelConfig& c, FamilyKeys& keys, const char* absent) {
  keys.optional("layer_types", c.layer_types, absent);
}

void check_llama(ModelConfig& c, Judge& judge) {
  check_heads(c, !c.partial_rotary_factor, judge);
  check_positive(c.rms_norm_eps, "rms_norm_eps", judge);
  check_rope(c, judge);
  check_layer_types(c, layer_type_names(), judge);
}

void check_window(const ModelConfig& c, std::span<const std::string> layers, Judge& judge) {
  if (!judge.good({"layer_types", "sliding_window"}) || c.sliding_window ||
      std::ranges::none_of(layers, is_sliding))
    return;
  judge.wrong("layer_types", "\"sliding_attention\" needs model.sliding_window (tokens)");
}

std::vector<std::string> alike_layers(const ModelConfig& c, const char* word) {
  return std::vector<std::string>(static_cast<std::size_t>(c.num_hidden_layers), word);
}

std::vector<std::string> windowed_layers(const ModelConfig& c) {
  return alike_layers(c, c.sliding_window ? kSlidingAttention : kFullAttention);
}

// ---- models

BlockNames llama_attention(const std::string& layer) {
  return {layer + "input_layernorm.weight", layer + "self_attn.", ""};
}

MlpNames llama_mlp(const std::string& layer) {
  return {layer + "post_attention_layernorm.weight", layer + "mlp.gate_proj.weight",
          layer + "mlp.up_proj.weight", layer + "mlp.down_proj.weight", ""};
}

namespace {

/// A norm behind attention takes the name that Llama's has in front of the MLP.
BlockNames attention_names(const std::string& layer, NormPlaces norms) {
  BlockNames names = llama_attention(layer);
  if (norms == NormPlaces::before) return names;
  if (norms == NormPlaces::after) names.norm.clear();
  names.norm_after = layer + "post_attention_layernorm.weight";
  return names;
}

MlpNames mlp_names(const std::string& layer, NormPlaces norms, bool fused) {
  MlpNames names = llama_mlp(layer);
  if (fused) names.gate = names.up = layer + "mlp.gate_up_proj.weight";
  if (norms == NormPlaces::before) return names;
  names.norm = norms == NormPlaces::both ? layer + "pre_feedforward_layernorm.weight" : "";
  names.norm_after = layer + "post_feedforward_layernorm.weight";
  return names;
}

}  // namespace

LlamaForm llama_form(const ModelConfig& c) {
  const bool bias = c.attention_bias.value_or(false);
  return {.branch = {.hidden = c.hidden_size, .norm_eps = *c.rms_norm_eps, .dtype = c.dtype},
          .attention = {.heads = *c.num_attention_heads,
                        .kv_heads = *c.num_key_value_heads,
                        .head_dim = *c.head_dim,
                        .softcap = c.attn_logit_softcapping.value_or(0),
                        .qkv_bias = bias,
                        .o_bias = bias},
          .mlp = {.intermediate = *c.intermediate_size, .bias = c.mlp_bias.value_or(false)},
          .ropes = {rope_of(c)}};
}

ModelParts llama_parts(const ModelConfig& c, std::span<const std::string> layers,
                       const LlamaForm& form) {
  const LayerMasks masks(layers, c.sliding_window.value_or(0), c.num_hidden_layers);
  AttentionShape attention = form.attention;
  attention.branch = form.branch;
  MlpShape mlp = form.mlp;
  mlp.branch = form.branch;

  Assembly model(c, form.branch);
  model.parts.ropes = form.ropes;
  model.parts.masks = masks.kinds;
  model.parts.embedding_multiplier = form.embedding_multiplier;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const std::string prefix = model.layer();
    attention.rope = is_sliding(layers[layer]) ? form.sliding_rope : 0;
    model.add<AttentionBlock>(attention, masks.of_layer[layer],
                              attention_names(prefix, form.branch.norms));
    model.add<MlpBlock>(mlp, mlp_names(prefix, form.branch.norms, form.fused_gate_up));
  }
  return model.finish();
}

}  // namespace longhaul::models
