// Mistral: a Llama whose layers all slide. Source: Jiang et al. 2023 (Mistral 7B); layers and names
// of Hugging Face's mistral.

#include "models/llama_like_impl.h"

namespace longhaul::models {
namespace {

void keys(ModelConfig& c, FamilyKeys& keys) {
  llama_keys(c, keys, {.num_key_value_heads = 8});
  keys.optional("sliding_window", c.sliding_window, "none: full_attention in all");
}

ModelParts parts(const ModelConfig& c) { return llama_parts(c, windowed_layers(c), llama_form(c)); }

}  // namespace

Family mistral_family() {
  return {"mistral", keys, layer_type_names(), windowed_layers, check_llama, parts};
}

}  // namespace longhaul::models
