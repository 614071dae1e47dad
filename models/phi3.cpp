// Phi-3 and Phi-4: matrices that are one by name, rotation of a share of each head, and the window
// in all layers. Source: Abdin et al. 2024 (Phi-3); layers and names of Hugging Face's phi3.

#include "models/llama_like_impl.h"

namespace longhaul::models {
namespace {

void keys(ModelConfig& c, FamilyKeys& keys) {
  llama_keys(c, keys, {.rms_norm_eps = 1e-5});
  keys.with_default("partial_rotary_factor", c.partial_rotary_factor, 1.0);
  keys.with_default("original_max_position_embeddings", c.original_max_position_embeddings,
                    std::int64_t{4096});
  keys.optional("sliding_window", c.sliding_window, "none: full_attention in all");
}

ModelParts parts(const ModelConfig& c) {
  LlamaForm form = llama_form(c);
  form.attention.fused_qkv = true;
  form.fused_gate_up = true;
  return llama_parts(c, windowed_layers(c), form);
}

}  // namespace

Family phi3_family() {
  return {"phi3", keys, layer_type_names(), windowed_layers, check_llama, parts};
}

}  // namespace longhaul::models
