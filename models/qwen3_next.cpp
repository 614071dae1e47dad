// Qwen3-Next and Qwen3.5: three layers of Gated DeltaNet, one of softmax attention with an output
// gate. Source: layers and names of Hugging Face's qwen3_next and qwen3_5_text.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "models/family_impl.h"
#include "models/gated_delta_net_block.h"
#include "models/layer_types.h"

namespace longhaul::models {
namespace {

constexpr std::int64_t kInterval = 4;  // of full_attention, where nothing says another

std::vector<std::string> words() { return {kFullAttention, kLinearAttention}; }

void shared_keys(ModelConfig& c, FamilyKeys& keys) {
  keys.with_default("tie_word_embeddings", c.tie_word_embeddings, false);
  keys.required("intermediate_size", c.intermediate_size);
  keys.required("num_attention_heads", c.num_attention_heads);
  keys.required("num_key_value_heads", c.num_key_value_heads);
  keys.required("head_dim", c.head_dim);
  keys.with_default("rms_norm_eps", c.rms_norm_eps, 1e-6);
  rope_keys(c, keys, 1e4);
  keys.with_default("partial_rotary_factor", c.partial_rotary_factor, 0.25);
  keys.optional("layer_types", c.layer_types, "as full_attention_interval says");
  keys.optional("full_attention_interval", c.full_attention_interval, "`4`");
  keys.required("linear_num_key_heads", c.linear_num_key_heads);
  keys.required("linear_num_value_heads", c.linear_num_value_heads);
  keys.required("linear_key_head_dim", c.linear_key_head_dim);
  keys.required("linear_value_head_dim", c.linear_value_head_dim);
  keys.with_default("linear_conv_kernel_dim", c.linear_conv_kernel_dim, std::int64_t{4});
}

void next_keys(ModelConfig& c, FamilyKeys& keys) {
  shared_keys(c, keys);
  keys.required("mlp_only_layers", c.mlp_only_layers);
}

std::vector<std::string> layers(const ModelConfig& c) {
  if (!c.layer_types.empty()) return c.layer_types;
  const std::int64_t interval = c.full_attention_interval.value_or(kInterval);
  std::vector<std::string> layers;
  for (std::int64_t layer = 1; layer <= c.num_hidden_layers; ++layer)
    layers.emplace_back(layer % interval == 0 ? kFullAttention : kLinearAttention);
  return layers;
}

void check(ModelConfig& c, Judge& judge) {
  check_heads(c, false, judge);
  check_positive(c.rms_norm_eps, "rms_norm_eps", judge);
  check_rope(c, judge);
  check_layer_types(c, words(), judge);
  if (judge.good({"layer_types", "full_attention_interval"}) && !c.layer_types.empty() &&
      c.full_attention_interval) {
    judge.wrong("full_attention_interval", "layer_types says it; leave one of them out");
  }
  check_multiple(c.linear_num_value_heads, "linear_num_value_heads", c.linear_num_key_heads,
                 "linear_num_key_heads", judge);
}

void next_check(ModelConfig& c, Judge& judge) {
  check(c, judge);
  if (!judge.good({"mlp_only_layers", "num_hidden_layers"})) return;
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    if (std::ranges::count(c.mlp_only_layers, layer) != 0) continue;
    judge.wrong("mlp_only_layers",
                fmt::format("layer {} is not in it and would have experts, which are not built; "
                            "expected all layers from 0 to {}",
                            layer, c.num_hidden_layers - 1));
    return;
  }
}

ModelParts parts_with(const ModelConfig& c, GatedDeltaNetProjections projections) {
  const BranchShape branch{
      .hidden = c.hidden_size, .norm_eps = *c.rms_norm_eps, .norm_offset = 1, .dtype = c.dtype};
  const AttentionShape attention{.branch = branch,
                                 .heads = *c.num_attention_heads,
                                 .kv_heads = *c.num_key_value_heads,
                                 .head_dim = *c.head_dim,
                                 .qk_norm = QkNorm::head,
                                 .output_gate = true};
  const GatedDeltaNetShape linear{.branch = branch,
                                  .key_heads = *c.linear_num_key_heads,
                                  .value_heads = *c.linear_num_value_heads,
                                  .key_head_dim = *c.linear_key_head_dim,
                                  .value_head_dim = *c.linear_value_head_dim,
                                  .conv_width = *c.linear_conv_kernel_dim,
                                  .projections = projections};
  const MlpShape mlp{branch, *c.intermediate_size};

  Assembly model(c, branch);
  model.parts.ropes = {rope_of(c)};
  model.parts.masks = one_mask(layers(c), kFullAttention);
  for (const std::string& word : layers(c)) {
    const std::string prefix = model.layer();
    if (word == kFullAttention) {
      model.add<AttentionBlock>(attention, kOneMask, llama_attention(prefix));
    } else {
      model.add<GatedDeltaNetBlock>(
          linear, kOneMask, BlockNames{prefix + "input_layernorm.weight", prefix + "linear_attn."});
    }
    model.add<MlpBlock>(mlp, llama_mlp(prefix));
  }
  return model.finish();
}

ModelParts next_parts(const ModelConfig& c) {
  return parts_with(c, GatedDeltaNetProjections::interleaved);
}
ModelParts plain_parts(const ModelConfig& c) {
  return parts_with(c, GatedDeltaNetProjections::plain);
}

}  // namespace

Family qwen3_next_family() {
  return {"qwen3_next", next_keys, words(), layers, next_check, next_parts};
}
Family qwen3_5_family() { return {"qwen3_5", shared_keys, words(), layers, check, plain_parts}; }

}  // namespace longhaul::models
