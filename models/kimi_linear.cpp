// Kimi Linear: layers of Kimi Delta Attention; its layers of latent attention are not built.
// Source: names of its published weights.

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "models/family_impl.h"
#include "models/kda_block.h"

namespace longhaul::models {
namespace {

constexpr const char* kKda = "kda";

void keys(ModelConfig& c, FamilyKeys& keys) {
  keys.with_default("tie_word_embeddings", c.tie_word_embeddings, false);
  keys.required("intermediate_size", c.intermediate_size);
  keys.with_default("rms_norm_eps", c.rms_norm_eps, 1e-5);
  keys.required("first_k_dense_replace", c.first_k_dense_replace);
  LinearAttnConfig& linear = c.linear_attn_config;
  keys.required("linear_attn_config.kda_layers", linear.kda_layers);
  keys.optional("linear_attn_config.full_attn_layers", linear.full_attn_layers, "none");
  keys.required("linear_attn_config.num_heads", linear.num_heads);
  keys.required("linear_attn_config.head_dim", linear.head_dim);
  keys.with_default("linear_attn_config.short_conv_kernel_size", linear.short_conv_kernel_size,
                    std::int64_t{4});
}

std::vector<std::string> layers(const ModelConfig& c) {
  return std::vector<std::string>(static_cast<std::size_t>(c.num_hidden_layers), kKda);
}

void check(ModelConfig& c, Judge& judge) {
  constexpr const char* kLayers = "linear_attn_config.kda_layers";
  constexpr const char* kFull = "linear_attn_config.full_attn_layers";
  check_positive(c.rms_norm_eps, "rms_norm_eps", judge);
  const LinearAttnConfig& linear = c.linear_attn_config;
  if (judge.good({kFull}) && !linear.full_attn_layers.empty()) {
    judge.wrong(kFull, "latent attention is not built; expected none: all layers in kda_layers");
  }
  if (!judge.good({"num_hidden_layers"})) return;
  std::vector<std::int64_t> all;
  for (std::int64_t layer = 1; layer <= c.num_hidden_layers; ++layer) all.push_back(layer);
  std::vector<std::int64_t> listed = linear.kda_layers;
  std::ranges::sort(listed);
  if (judge.good({kLayers}) && !listed.empty() && listed != all) {
    judge.wrong(kLayers, fmt::format("expected every layer from 1 to num_hidden_layers = {}, once: "
                                     "latent attention, of the others, is not built",
                                     c.num_hidden_layers));
  }
  if (judge.good({"first_k_dense_replace"}) &&
      c.first_k_dense_replace.value_or(c.num_hidden_layers) < c.num_hidden_layers) {
    judge.wrong("first_k_dense_replace",
                fmt::format("experts, of later layers, are not built; expected at least "
                            "num_hidden_layers = {}",
                            c.num_hidden_layers));
  }
}

ModelParts parts(const ModelConfig& c) {
  const BranchShape branch{.hidden = c.hidden_size, .norm_eps = *c.rms_norm_eps, .dtype = c.dtype};
  const LinearAttnConfig& linear = c.linear_attn_config;
  const KdaShape kda{.branch = branch,
                     .heads = *linear.num_heads,
                     .head_dim = *linear.head_dim,
                     .conv_width = *linear.short_conv_kernel_size};
  const MlpShape mlp{branch, *c.intermediate_size};

  Assembly model(c, branch);
  model.parts.masks = one_mask(layers(c), kKda);
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const std::string prefix = model.layer();
    model.add<KdaBlock>(kda, kOneMask,
                        BlockNames{prefix + "input_layernorm.weight", prefix + "self_attn."});
    model.add<MlpBlock>(mlp, llama_mlp(prefix));
  }
  return model.finish();
}

}  // namespace

Family kimi_linear_family() { return {"kimi_linear", keys, {kKda}, layers, check, parts}; }

}  // namespace longhaul::models
