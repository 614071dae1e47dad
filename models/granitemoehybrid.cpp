// Granite 4: nine layers of Mamba-2, one of softmax attention, and multipliers. Source: layers and
// names of Hugging Face's granitemoehybrid.

#include <fmt/format.h>

#include <limits>
#include <string>

#include "models/family_impl.h"
#include "models/layer_types.h"
#include "models/mamba2_block.h"

namespace longhaul::models {
namespace {

constexpr const char* kAttention = "attention";
constexpr const char* kMamba = "mamba";

std::vector<std::string> words() { return {kMamba, kAttention}; }

void keys(ModelConfig& c, FamilyKeys& keys) {
  keys.with_default("tie_word_embeddings", c.tie_word_embeddings, false);
  keys.required("num_attention_heads", c.num_attention_heads);
  keys.optional("num_key_value_heads", c.num_key_value_heads, "num_attention_heads");
  keys.optional("head_dim", c.head_dim, "hidden_size / num_attention_heads");
  keys.with_default("rms_norm_eps", c.rms_norm_eps, 1e-6);
  rope_keys(c, keys, 1e4);
  keys.required("layer_types", c.layer_types);
  keys.required("num_local_experts", c.num_local_experts);
  keys.required("shared_intermediate_size", c.shared_intermediate_size);
  keys.with_default("position_embedding_type", c.position_embedding_type, std::string("nope"));
  keys.with_default("embedding_multiplier", c.embedding_multiplier, 1.0);
  keys.with_default("residual_multiplier", c.residual_multiplier, 1.0);
  keys.with_default("attention_multiplier", c.attention_multiplier, 1.0);
  keys.with_default("logits_scaling", c.logits_scaling, 1.0);
  keys.required("mamba_n_heads", c.mamba_n_heads);
  keys.optional("mamba_d_head", c.mamba_d_head, "mamba_expand * hidden_size / mamba_n_heads");
  keys.required("mamba_d_state", c.mamba_d_state);
  keys.with_default("mamba_n_groups", c.mamba_n_groups, std::int64_t{1});
  keys.with_default("mamba_d_conv", c.mamba_d_conv, std::int64_t{4});
  keys.with_default("mamba_expand", c.mamba_expand, std::int64_t{2});
  keys.with_default("mamba_conv_bias", c.mamba_conv_bias, true);
  keys.with_default("time_step_limit", c.time_step_limit,
                    {0.0, std::numeric_limits<double>::infinity()});
}

std::vector<std::string> layers(const ModelConfig& c) { return c.layer_types; }

bool turns(const ModelConfig& c) { return c.position_embedding_type == "rope"; }

void check_mamba(ModelConfig& c, Judge& judge) {
  check_multiple(c.mamba_n_heads, "mamba_n_heads", c.mamba_n_groups, "mamba_n_groups", judge);
  check_time_steps(c, judge);
  if (!judge.good({"hidden_size", "mamba_n_heads", "mamba_d_head", "mamba_expand"}) ||
      !c.mamba_n_heads)
    return;
  const std::int64_t inner = *c.mamba_expand * c.hidden_size;
  if (!c.mamba_d_head && inner % *c.mamba_n_heads == 0) c.mamba_d_head = inner / *c.mamba_n_heads;
  if (!c.mamba_d_head || *c.mamba_n_heads * *c.mamba_d_head != inner) {
    judge.wrong(
        "mamba_n_heads",
        fmt::format("expected mamba_n_heads * mamba_d_head = mamba_expand * hidden_size = {}",
                    inner));
  }
}

void check(ModelConfig& c, Judge& judge) {
  check_heads(c, turns(c), judge);
  check_positive(c.rms_norm_eps, "rms_norm_eps", judge);
  if (turns(c)) check_rope(c, judge);
  if (judge.good({"position_embedding_type", "rope_scaling.rope_type"}) && !turns(c) &&
      c.rope_scaling.rope_type)
    judge.wrong("rope_scaling.rope_type",
                "position_embedding_type = \"nope\" turns nothing; leave it out");
  check_layer_types(c, words(), judge);
  check_mamba(c, judge);
  if (judge.good({"num_local_experts"}) && c.num_local_experts.value_or(0) != 0) {
    judge.wrong("num_local_experts",
                "experts are not built; expected 0, a Granite whose layers "
                "have the shared MLP only");
  }
}

ModelParts parts(const ModelConfig& c) {
  const BranchShape branch{.hidden = c.hidden_size,
                           .norm_eps = *c.rms_norm_eps,
                           .residual = {.beta = *c.residual_multiplier},
                           .dtype = c.dtype};
  const AttentionShape attention{.branch = branch,
                                 .heads = *c.num_attention_heads,
                                 .kv_heads = *c.num_key_value_heads,
                                 .head_dim = *c.head_dim,
                                 .scale = *c.attention_multiplier,
                                 .rope = turns(c) ? std::optional<std::size_t>(0) : std::nullopt};
  const Mamba2Shape mamba{.branch = branch,
                          .heads = *c.mamba_n_heads,
                          .head_dim = *c.mamba_d_head,
                          .state_dim = *c.mamba_d_state,
                          .groups = *c.mamba_n_groups,
                          .conv_width = *c.mamba_d_conv,
                          .conv_bias = *c.mamba_conv_bias,
                          .min_step = c.time_step_limit[0],
                          .max_step = c.time_step_limit[1]};
  const MlpShape mlp{branch, *c.shared_intermediate_size};

  Assembly model(c, branch);
  if (turns(c)) model.parts.ropes = {rope_of(c)};
  model.parts.embedding_multiplier = *c.embedding_multiplier;
  model.parts.masks = one_mask(c.layer_types, kAttention);
  for (const std::string& word : c.layer_types) {
    const std::string prefix = model.layer();
    if (word == kAttention) {
      model.add<AttentionBlock>(attention, kOneMask, llama_attention(prefix));
    } else {
      model.add<Mamba2Block>(mamba, kOneMask,
                             BlockNames{prefix + "input_layernorm.weight", prefix + "mamba."});
    }
    const std::string both = prefix + "shared_mlp.input_linear.weight";
    model.add<MlpBlock>(mlp, MlpNames{prefix + "post_attention_layernorm.weight", both, both,
                                      prefix + "shared_mlp.output_linear.weight"});
  }
  return model.finish();
}

}  // namespace

Family granitemoehybrid_family() {
  return {"granitemoehybrid", keys, words(), layers, check, parts};
}

}  // namespace longhaul::models
