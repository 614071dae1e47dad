// Qwen2 (2.5 too) and Qwen3. Source: Yang et al. 2024 (Qwen2), 2025 (Qwen3); layers and names of
// Hugging Face's qwen2 and qwen3.

#include <algorithm>

#include "models/llama_like_impl.h"

namespace longhaul::models {
namespace {

void window_keys(ModelConfig& c, FamilyKeys& keys) {
  keys.with_default("use_sliding_window", c.use_sliding_window, false);
  keys.with_default("sliding_window", c.sliding_window, std::int64_t{4096});
  keys.with_default("max_window_layers", c.max_window_layers, std::int64_t{28});
  layer_type_keys(c, keys, "as use_sliding_window and max_window_layers say");
}

void qwen2_keys(ModelConfig& c, FamilyKeys& keys) {
  llama_keys(c, keys, {.num_key_value_heads = 32});
  window_keys(c, keys);
}

void qwen3_keys(ModelConfig& c, FamilyKeys& keys) {
  llama_keys(c, keys, {.num_key_value_heads = 32, .head_dim = 128});
  keys.with_default("attention_bias", c.attention_bias, false);
  window_keys(c, keys);
}

std::vector<std::string> layers(const ModelConfig& c) {
  return patterned_layers(c, [&](std::int64_t layer) {
    return c.use_sliding_window.value_or(false) && layer >= c.max_window_layers.value_or(0);
  });
}

void check(ModelConfig& c, Judge& judge) {
  check_llama(c, judge);
  if (judge.good({"layer_types", "use_sliding_window"}) && !*c.use_sliding_window &&
      std::ranges::any_of(c.layer_types, is_sliding))
    judge.wrong("layer_types", "\"sliding_attention\" needs model.use_sliding_window = true");
}

/// Biases of q, k and v, which no key says.
ModelParts qwen2_parts(const ModelConfig& c) {
  LlamaForm form = llama_form(c);
  form.attention.qkv_bias = true;
  return llama_parts(c, layers(c), form);
}

ModelParts qwen3_parts(const ModelConfig& c) {
  LlamaForm form = llama_form(c);
  form.attention.qk_norm = QkNorm::head;
  return llama_parts(c, layers(c), form);
}

}  // namespace

Family qwen2_family() {
  return {"qwen2", qwen2_keys, layer_type_names(), layers, check, qwen2_parts};
}
Family qwen3_family() {
  return {"qwen3", qwen3_keys, layer_type_names(), layers, check, qwen3_parts};
}

}  // namespace longhaul::models
