// OLMo 2: norms behind each half of a layer and none in front, and of whole rows of q and k.
// Source: OLMo Team 2025 (2 OLMo 2 Furious); layers and names of Hugging Face's olmo2.

#include "models/llama_like_impl.h"

namespace longhaul::models {
namespace {

void keys(ModelConfig& c, FamilyKeys& keys) {
  llama_keys(c, keys, {.rms_norm_eps = 1e-5});
  keys.with_default("attention_bias", c.attention_bias, false);
}

std::vector<std::string> layers(const ModelConfig& c) { return alike_layers(c, kFullAttention); }

ModelParts parts(const ModelConfig& c) {
  LlamaForm form = llama_form(c);
  form.branch.norms = NormPlaces::after;
  form.attention.qk_norm = QkNorm::row;
  return llama_parts(c, layers(c), form);
}

}  // namespace

Family olmo2_family() { return {"olmo2", keys, {kFullAttention}, layers, check_llama, parts}; }

}  // namespace longhaul::models
