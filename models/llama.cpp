// The Llama family. Source: Touvron et al. 2023 (LLaMA); layers and names of Hugging Face's llama.
// Windows, a cap of scores (Gemma 2), sigmoid attention (Ramapuram et al. 2024, FlashSigmoid) and
// sinks (OpenAI 2025, gpt-oss) are options that its config.json does not have.

#include <algorithm>
#include <string>

#include "models/llama_like_impl.h"

namespace longhaul::models {
namespace {

constexpr const char* kSoftmax = "softmax";
constexpr const char* kSigmoid = "sigmoid";

void keys(ModelConfig& c, FamilyKeys& keys) {
  llama_keys(c, keys);
  keys.with_default("attention_bias", c.attention_bias, false);
  keys.with_default("mlp_bias", c.mlp_bias, false);
  layer_type_keys(c, keys, "full_attention in all");
  keys.optional("sliding_window", c.sliding_window, "none");
  keys.with_default("attn_logit_softcapping", c.attn_logit_softcapping, 0.0);
  keys.with_default("attention_weighting", c.attention_weighting, std::string(kSoftmax));
  keys.optional("attention_sigmoid_bias", c.attention_sigmoid_bias, "none");
  keys.with_default("attention_sinks", c.attention_sinks, false);
}

std::vector<std::string> layers(const ModelConfig& c) {
  return patterned_layers(c, [](std::int64_t) { return false; });
}

void check_weighting(const ModelConfig& c, Judge& judge) {
  if (!judge.good({"attention_weighting", "attention_sigmoid_bias", "attention_sinks"})) return;
  const bool sigmoid = c.attention_weighting == kSigmoid;
  if (!sigmoid && c.attention_weighting != kSoftmax)
    judge.wrong("attention_weighting", "expected softmax or sigmoid");
  if (sigmoid && !c.attention_sigmoid_bias)
    judge.wrong("attention_weighting",
                "it needs model.attention_sigmoid_bias; -ln(training.seq_len) is usual");
  if (!sigmoid && c.attention_sigmoid_bias)
    judge.wrong("attention_sigmoid_bias",
                "only attention_weighting = \"sigmoid\" has a use for it; leave it out");
  if (sigmoid && *c.attention_sinks)
    judge.wrong("attention_sinks", "a sigmoid has no denominator for sinks; expected false");
}

void check(ModelConfig& c, Judge& judge) {
  check_llama(c, judge);
  check_window(c, layers(c), judge);
  check_weighting(c, judge);
  if (judge.good({"layer_types", "sliding_window"}) && c.sliding_window &&
      std::ranges::none_of(c.layer_types, is_sliding))
    judge.wrong("sliding_window",
                "no layer of model.layer_types is sliding_attention; leave it out");
}

ModelParts parts(const ModelConfig& c) {
  LlamaForm form = llama_form(c);
  form.attention.weighting = c.attention_weighting == kSigmoid ? attention::Weighting::sigmoid
                                                               : attention::Weighting::softmax;
  form.attention.bias = c.attention_sigmoid_bias.value_or(0);
  form.attention.sinks = *c.attention_sinks;
  return llama_parts(c, layers(c), form);
}

}  // namespace

Family llama_family() { return {"llama", keys, layer_type_names(), layers, check, parts}; }

}  // namespace longhaul::models
