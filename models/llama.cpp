// The Llama family. Source: Touvron et al. 2023 (LLaMA).

#include <algorithm>
#include <string>

#include "models/attention_block.h"
#include "models/family_impl.h"
#include "models/layer_types.h"
#include "models/mlp_block.h"

namespace longhaul::models {
namespace {

void keys(ModelConfig& c, FamilyKeys& keys) {
  keys.required("intermediate_size", c.intermediate_size);
  keys.required("num_attention_heads", c.num_attention_heads);
  keys.optional("num_key_value_heads", c.num_key_value_heads, "num_attention_heads");
  keys.optional("head_dim", c.head_dim, "hidden_size / num_attention_heads");
  keys.with_default("rms_norm_eps", c.rms_norm_eps, 1e-5);
  keys.with_default("rope_theta", c.rope_theta, 1e4);
  keys.optional("layer_types", c.layer_types, "full_attention in all");
  keys.optional("sliding_window", c.sliding_window, "none");
}

std::vector<std::string> layers(const ModelConfig& c) {
  if (!c.layer_types.empty()) return c.layer_types;
  return std::vector<std::string>(static_cast<std::size_t>(c.num_hidden_layers), kFullAttention);
}

void check(ModelConfig& c, Judge& judge) {
  check_heads(c, true, judge);
  check_positive(c.rms_norm_eps, "rms_norm_eps", judge);
  check_positive(c.rope_theta, "rope_theta", judge);
  check_layer_types(c, layer_type_names(), judge);
  if (!judge.good({"layer_types", "sliding_window"})) return;
  const bool slides = std::ranges::any_of(c.layer_types, is_sliding);
  if (slides && !c.sliding_window) {
    judge.wrong("layer_types", "\"sliding_attention\" needs model.sliding_window (tokens)");
  } else if (!slides && c.sliding_window) {
    judge.wrong("sliding_window",
                "no layer of model.layer_types is sliding_attention; leave it out");
  }
}

ModelParts parts(const ModelConfig& c) {
  const BranchShape branch{.hidden = c.hidden_size, .norm_eps = *c.rms_norm_eps, .dtype = c.dtype};
  const AttentionShape attention{branch, *c.num_attention_heads, *c.num_key_value_heads,
                                 *c.head_dim};
  const MlpShape mlp{branch, *c.intermediate_size};
  const LayerMasks masks(c.layer_types, c.sliding_window.value_or(0), c.num_hidden_layers);

  Assembly model(c, branch);
  model.parts.rope_dim = *c.head_dim;
  model.parts.rope_theta = *c.rope_theta;
  model.parts.masks = masks.kinds;
  for (const std::size_t mask : masks.of_layer) {
    const std::string prefix = model.layer();
    model.add<AttentionBlock>(attention, mask, llama_attention(prefix));
    model.add<MlpBlock>(mlp, llama_mlp(prefix));
  }
  return model.finish();
}

}  // namespace

BlockNames llama_attention(const std::string& layer) {
  return {layer + "input_layernorm.weight", layer + "self_attn."};
}

MlpNames llama_mlp(const std::string& layer) {
  return {layer + "post_attention_layernorm.weight", layer + "mlp.gate_proj.weight",
          layer + "mlp.up_proj.weight", layer + "mlp.down_proj.weight"};
}

Family llama_family() { return {"llama", keys, layer_type_names(), layers, check, parts}; }

}  // namespace longhaul::models
