// Gemma 2 and the text of Gemma 3. Source: Gemma Team 2024, 2025; layers and names of Hugging
// Face's gemma2 and gemma3_text.

#include <cmath>

#include "models/llama_like_impl.h"

namespace longhaul::models {
namespace {

void shared_keys(ModelConfig& c, FamilyKeys& keys, double theta) {
  llama_keys(c, keys,
             {.num_key_value_heads = 4,
              .head_dim = 256,
              .rope_theta = theta,
              .tie_word_embeddings = true});
  keys.with_default("attention_bias", c.attention_bias, false);
  keys.with_default("query_pre_attn_scalar", c.query_pre_attn_scalar, 256.0);
  keys.with_default("sliding_window", c.sliding_window, std::int64_t{4096});
}

void gemma2_keys(ModelConfig& c, FamilyKeys& keys) {
  shared_keys(c, keys, 1e4);
  keys.with_default("attn_logit_softcapping", c.attn_logit_softcapping, 50.0);
  keys.with_default("final_logit_softcapping", c.final_logit_softcapping, 30.0);
  layer_type_keys(c, keys, "by turns, from sliding_attention on");
}

void gemma3_keys(ModelConfig& c, FamilyKeys& keys) {
  shared_keys(c, keys, 1e6);
  keys.with_default("rope_local_base_freq", c.rope_local_base_freq, 1e4);
  keys.with_default("final_logit_softcapping", c.final_logit_softcapping, 0.0);
  keys.with_default("sliding_window_pattern", c.sliding_window_pattern, std::int64_t{6});
  layer_type_keys(c, keys, "as sliding_window_pattern says");
}

std::vector<std::string> gemma2_layers(const ModelConfig& c) {
  return patterned_layers(c, [](std::int64_t layer) { return layer % 2 == 0; });
}
std::vector<std::string> gemma3_layers(const ModelConfig& c) {
  const std::int64_t pattern = c.sliding_window_pattern.value_or(1);
  return patterned_layers(c, [&](std::int64_t layer) { return (layer + 1) % pattern != 0; });
}

void check(ModelConfig& c, Judge& judge) {
  check_llama(c, judge);
  check_positive(c.query_pre_attn_scalar, "query_pre_attn_scalar", judge);
}
void gemma3_check(ModelConfig& c, Judge& judge) {
  check(c, judge);
  check_positive(c.rope_local_base_freq, "rope_local_base_freq", judge);
}

/// sqrt(hidden_size) as the embedding's rows have it: rounded with them.
double embedding_multiplier(const ModelConfig& c) {
  const double root = std::sqrt(static_cast<double>(c.hidden_size));
  if (c.dtype != runtime::DType::bfloat16) return root;
  return static_cast<float>(runtime::BFloat16(static_cast<float>(root)));
}

LlamaForm gemma_form(const ModelConfig& c) {
  LlamaForm form = llama_form(c);
  form.branch.norms = NormPlaces::both;
  form.branch.norm_offset = 1;
  form.attention.scale = 1 / std::sqrt(*c.query_pre_attn_scalar);
  form.mlp.activation = Activation::geglu;
  form.embedding_multiplier = embedding_multiplier(c);
  return form;
}

ModelParts gemma2_parts(const ModelConfig& c) {
  return llama_parts(c, gemma2_layers(c), gemma_form(c));
}

ModelParts gemma3_parts(const ModelConfig& c) {
  LlamaForm form = gemma_form(c);
  form.attention.qk_norm = QkNorm::head;
  form.ropes.push_back(make_rope({rotary_dims(c), *c.rope_local_base_freq}));
  form.sliding_rope = 1;
  return llama_parts(c, gemma3_layers(c), form);
}

}  // namespace

Family gemma2_family() {
  return {"gemma2", gemma2_keys, layer_type_names(), gemma2_layers, check, gemma2_parts};
}
Family gemma3_text_family() {
  return {"gemma3_text", gemma3_keys,  layer_type_names(),
          gemma3_layers, gemma3_check, gemma3_parts};
}

}  // namespace longhaul::models
