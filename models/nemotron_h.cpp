// Nemotron-H: a layer is Mamba-2, softmax attention without positions, or an MLP without gates.
// Source: layers of Hugging Face's nemotron_h, names of its published weights.

#include <fmt/format.h>

#include <limits>
#include <optional>
#include <string>

#include "models/family_impl.h"
#include "models/mamba2_block.h"

namespace longhaul::models {
namespace {

constexpr const char* kPattern = "hybrid_override_pattern";
constexpr const char* kAttention = "attention";
constexpr const char* kMamba = "mamba";
constexpr const char* kMlp = "mlp";

void keys(ModelConfig& c, FamilyKeys& keys) {
  keys.with_default("tie_word_embeddings", c.tie_word_embeddings, false);
  keys.required("intermediate_size", c.intermediate_size);
  keys.required("num_attention_heads", c.num_attention_heads);
  keys.required("num_key_value_heads", c.num_key_value_heads);
  keys.required("head_dim", c.head_dim);
  keys.required(kPattern, c.hybrid_override_pattern);
  keys.with_default("layer_norm_epsilon", c.layer_norm_epsilon, 1e-5);
  keys.required("mamba_num_heads", c.mamba_num_heads);
  keys.required("mamba_head_dim", c.mamba_head_dim);
  keys.required("ssm_state_size", c.ssm_state_size);
  keys.required("n_groups", c.n_groups);
  keys.with_default("conv_kernel", c.conv_kernel, std::int64_t{4});
  keys.with_default("use_conv_bias", c.use_conv_bias, true);
  keys.with_default("time_step_limit", c.time_step_limit,
                    {0.0, std::numeric_limits<double>::infinity()});
}

std::vector<std::string> layers(const ModelConfig& c) {
  std::vector<std::string> layers;
  for (const char letter : *c.hybrid_override_pattern)
    layers.emplace_back(letter == 'M' ? kMamba : letter == '*' ? kAttention : kMlp);
  return layers;
}

void check_pattern(const ModelConfig& c, Judge& judge) {
  if (!judge.good({kPattern}) || !c.hybrid_override_pattern) return;
  const std::string& pattern = *c.hybrid_override_pattern;
  if (const auto wrong = pattern.find_first_not_of("M*-"); wrong != pattern.npos) {
    judge.wrong(
        kPattern,
        fmt::format("letter {} is '{}'{}; expected M (Mamba), * (attention) or - (MLP)", wrong,
                    pattern[wrong], pattern[wrong] == 'E' ? ", experts, which are not built" : ""));
    return;
  }
  if (judge.good({"num_hidden_layers"}) && std::ssize(pattern) != c.num_hidden_layers) {
    judge.wrong(kPattern, fmt::format("{} letters; expected one for each of the num_hidden_layers "
                                      "= {}",
                                      pattern.size(), c.num_hidden_layers));
  }
}

void check(ModelConfig& c, Judge& judge) {
  check_heads(c, false, judge);
  check_positive(c.layer_norm_epsilon, "layer_norm_epsilon", judge);
  check_pattern(c, judge);
  check_multiple(c.mamba_num_heads, "mamba_num_heads", c.n_groups, "n_groups", judge);
  check_time_steps(c, judge);
}

ModelParts parts(const ModelConfig& c) {
  const BranchShape branch{
      .hidden = c.hidden_size, .norm_eps = *c.layer_norm_epsilon, .dtype = c.dtype};
  const AttentionShape attention{.branch = branch,
                                 .heads = *c.num_attention_heads,
                                 .kv_heads = *c.num_key_value_heads,
                                 .head_dim = *c.head_dim,
                                 .rope = std::nullopt};
  const Mamba2Shape mamba{.branch = branch,
                          .heads = *c.mamba_num_heads,
                          .head_dim = *c.mamba_head_dim,
                          .state_dim = *c.ssm_state_size,
                          .groups = *c.n_groups,
                          .conv_width = *c.conv_kernel,
                          .conv_bias = *c.use_conv_bias,
                          .min_step = c.time_step_limit[0],
                          .max_step = c.time_step_limit[1]};
  const MlpShape mlp{branch, *c.intermediate_size, Activation::squared_relu};

  Assembly model(c, branch,
                 {"backbone.embeddings.weight", "backbone.layers.", "backbone.norm_f.weight",
                  "lm_head.weight"});
  model.parts.masks = one_mask(layers(c), kAttention);
  for (const std::string& word : layers(c)) {
    const std::string layer = model.layer(), norm = layer + "norm.weight", mixer = layer + "mixer.";
    if (word == kAttention) {
      model.add<AttentionBlock>(attention, kOneMask, BlockNames{norm, mixer});
    } else if (word == kMamba) {
      model.add<Mamba2Block>(mamba, kOneMask, BlockNames{norm, mixer});
    } else {
      model.add<MlpBlock>(mlp,
                          MlpNames{norm, "", mixer + "up_proj.weight", mixer + "down_proj.weight"});
    }
  }
  return model.finish();
}

}  // namespace

Family nemotron_h_family() {
  return {"nemotron_h", keys, {kMamba, kAttention, kMlp}, layers, check, parts};
}

}  // namespace longhaul::models
