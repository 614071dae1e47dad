// MiniMax: seven layers of Lightning attention, one of softmax attention; the residual stream is
// what the norms make of it, and each half has factors. Source: layers of Hugging Face's minimax,
// names of its published weights.

#include <string>

#include "models/family_impl.h"
#include "models/layer_types.h"
#include "models/lightning_block.h"

namespace longhaul::models {
namespace {

std::vector<std::string> words() { return {kFullAttention, kLinearAttention}; }

void keys(ModelConfig& c, FamilyKeys& keys) {
  keys.with_default("tie_word_embeddings", c.tie_word_embeddings, false);
  keys.required("intermediate_size", c.intermediate_size);
  keys.required("num_attention_heads", c.num_attention_heads);
  keys.optional("num_key_value_heads", c.num_key_value_heads, "num_attention_heads");
  keys.optional("head_dim", c.head_dim, "hidden_size / num_attention_heads");
  keys.with_default("rms_norm_eps", c.rms_norm_eps, 1e-5);
  rope_keys(c, keys, 1e6);
  keys.required("layer_types", c.layer_types);
  keys.required("num_local_experts", c.num_local_experts);
  keys.with_default("full_attn_alpha_factor", c.full_attn_alpha_factor, 1.0);
  keys.with_default("full_attn_beta_factor", c.full_attn_beta_factor, 1.0);
  keys.with_default("linear_attn_alpha_factor", c.linear_attn_alpha_factor, 1.0);
  keys.with_default("linear_attn_beta_factor", c.linear_attn_beta_factor, 1.0);
  keys.with_default("mlp_alpha_factor", c.mlp_alpha_factor, 1.0);
  keys.with_default("mlp_beta_factor", c.mlp_beta_factor, 1.0);
}

std::vector<std::string> layers(const ModelConfig& c) { return c.layer_types; }

void check(ModelConfig& c, Judge& judge) {
  check_heads(c, true, judge);
  check_positive(c.rms_norm_eps, "rms_norm_eps", judge);
  check_rope(c, judge);
  check_layer_types(c, words(), judge);
  if (judge.good({"num_local_experts"}) && c.num_local_experts.value_or(1) != 1) {
    judge.wrong("num_local_experts",
                "experts are not built; expected 1, which every token goes through");
  }
}

ModelParts parts(const ModelConfig& c) {
  const auto branch = [&](double alpha, double beta) {
    return BranchShape{.hidden = c.hidden_size,
                       .norm_eps = *c.rms_norm_eps,
                       .residual = {alpha, beta, true},
                       .dtype = c.dtype};
  };
  const AttentionShape attention{branch(*c.full_attn_alpha_factor, *c.full_attn_beta_factor),
                                 *c.num_attention_heads, *c.num_key_value_heads, *c.head_dim};
  const MlpShape mlp{branch(*c.mlp_alpha_factor, *c.mlp_beta_factor), *c.intermediate_size};
  LightningShape linear{.branch = branch(*c.linear_attn_alpha_factor, *c.linear_attn_beta_factor),
                        .heads = *c.num_attention_heads,
                        .head_dim = *c.head_dim,
                        .layers = c.num_hidden_layers};

  Assembly model(c, branch(1, 1));
  model.parts.ropes = {rope_of(c)};
  model.parts.masks = one_mask(c.layer_types, kFullAttention);
  for (const std::string& word : c.layer_types) {
    const std::string prefix = model.layer();
    if (word == kFullAttention) {
      model.add<AttentionBlock>(attention, kOneMask, llama_attention(prefix));
    } else {
      model.add<LightningBlock>(
          linear, kOneMask, BlockNames{prefix + "input_layernorm.weight", prefix + "self_attn."});
    }
    ++linear.layer;
    // One expert's softmax is 1 whatever its router says, whose gradient is 0.
    const std::string moe = prefix + "block_sparse_moe.";
    model.add_unused(moe + "gate.weight", {1, c.hidden_size});
    model.add<MlpBlock>(
        mlp, MlpNames{prefix + "post_attention_layernorm.weight", moe + "experts.0.w1.weight",
                      moe + "experts.0.w3.weight", moe + "experts.0.w2.weight"});
  }
  return model.finish();
}

}  // namespace

Family minimax_family() { return {"minimax", keys, words(), layers, check, parts}; }

}  // namespace longhaul::models
