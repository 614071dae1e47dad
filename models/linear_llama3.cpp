// Linear-Llama3: a Llama whose layers, all but some, have linear attention. Source: Sun et al. 2025
// (LASP-2).

#include <algorithm>
#include <string>

#include "models/family_impl.h"
#include "models/layer_types.h"
#include "models/linear_llama_block.h"
#include "runtime/ops/feature_map.h"

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
  rope_keys(c, keys, 1e4);
  keys.required("layer_types", c.layer_types);
  keys.with_default("linear_attention", c.linear_attention, std::string("basic"));
  keys.with_default("feature_map", c.feature_map, std::string("identity"));
  keys.with_default("normalize", c.normalize, false);
}

std::vector<std::string> layers(const ModelConfig& c) { return c.layer_types; }

void check(ModelConfig& c, Judge& judge) {
  check_heads(c, true, judge);
  check_positive(c.rms_norm_eps, "rms_norm_eps", judge);
  check_rope(c, judge);
  check_layer_types(c, words(), judge);
  if (judge.good({"linear_attention", "normalize"}) && *c.normalize &&
      c.linear_attention != "basic") {
    judge.wrong("normalize",
                "only the basic kind is divided by its weights' sum; the others norm "
                "their heads");
  }
}

ModelParts parts(const ModelConfig& c) {
  const BranchShape branch{.hidden = c.hidden_size, .norm_eps = *c.rms_norm_eps, .dtype = c.dtype};
  const AttentionShape attention{branch, *c.num_attention_heads, *c.num_key_value_heads,
                                 *c.head_dim};
  const LinearLlamaShape linear{.branch = branch,
                                .kind = linear_llama_kind_of(*c.linear_attention),
                                .heads = *c.num_attention_heads,
                                .head_dim = *c.head_dim,
                                .feature_map = runtime::ops::feature_map_of(*c.feature_map),
                                .normalize = *c.normalize};
  const MlpShape mlp{branch, *c.intermediate_size};

  Assembly model(c, branch);
  model.parts.ropes = {rope_of(c)};
  model.parts.masks = one_mask(c.layer_types, kFullAttention);
  for (const std::string& word : c.layer_types) {
    const std::string prefix = model.layer();
    if (word == kFullAttention) {
      model.add<AttentionBlock>(attention, kOneMask, llama_attention(prefix));
    } else {
      model.add<LinearLlamaBlock>(
          linear, kOneMask, BlockNames{prefix + "input_layernorm.weight", prefix + "self_attn."});
    }
    model.add<MlpBlock>(mlp, llama_mlp(prefix));
  }
  return model.finish();
}

}  // namespace

Family linear_llama3_family() { return {"linear_llama3", keys, words(), layers, check, parts}; }

}  // namespace longhaul::models
