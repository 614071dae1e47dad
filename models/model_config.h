#pragma once
// The shape of a model, in the words of Hugging Face's config.json.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/rope.h"
#include "runtime/dtype.h"

namespace longhaul::models {

/// Of Kimi Linear. Layers are numbered from 1.
struct LinearAttnConfig {
  std::vector<std::int64_t> kda_layers, full_attn_layers;
  std::optional<std::int64_t> num_heads, head_dim, short_conv_kernel_size;
};

/// Every key of every family; a family says which of them it uses (family.h). What is optional, or
/// an empty list, is not given until the family has completed it. launch/config_schema.cpp explains
/// each key.
struct ModelConfig {
  std::string architecture = "llama";
  std::int64_t hidden_size = 0;
  std::optional<std::int64_t> intermediate_size;
  std::int64_t num_hidden_layers = 0;
  std::optional<std::int64_t> num_attention_heads, num_key_value_heads, head_dim;
  std::optional<double> rms_norm_eps;
  std::optional<bool> tie_word_embeddings;
  std::optional<std::int64_t> vocab_size;
  std::vector<std::string> layer_types;
  std::optional<std::int64_t> sliding_window;

  // Of families that turn q and k.
  std::optional<double> rope_theta, partial_rotary_factor;
  std::optional<std::int64_t> max_position_embeddings;
  RopeScaling rope_scaling;

  // Llama and what grew from it.
  std::optional<bool> attention_bias, mlp_bias;
  std::optional<double> attn_logit_softcapping, final_logit_softcapping;  ///< 0: none
  std::optional<std::string> attention_weighting;                         ///< softmax or sigmoid
  std::optional<double> attention_sigmoid_bias;
  std::optional<bool> attention_sinks;
  std::optional<bool> use_sliding_window;                        ///< Qwen
  std::optional<std::int64_t> max_window_layers;                 ///< Qwen
  std::optional<double> query_pre_attn_scalar;                   ///< Gemma
  std::optional<double> rope_local_base_freq;                    ///< Gemma 3
  std::optional<std::int64_t> sliding_window_pattern;            ///< Gemma 3
  std::optional<std::int64_t> original_max_position_embeddings;  ///< Phi-3

  // Qwen3-Next and Qwen3.5.
  std::optional<std::int64_t> full_attention_interval;
  std::vector<std::int64_t> mlp_only_layers;
  std::optional<std::int64_t> linear_num_key_heads, linear_num_value_heads, linear_key_head_dim,
      linear_value_head_dim, linear_conv_kernel_dim;

  // Granite 4; MiniMax has num_local_experts too.
  std::optional<std::int64_t> num_local_experts, shared_intermediate_size;
  std::optional<std::string> position_embedding_type;
  std::optional<double> embedding_multiplier, residual_multiplier, attention_multiplier,
      logits_scaling;
  std::optional<std::int64_t> mamba_n_heads, mamba_d_head, mamba_d_state, mamba_n_groups,
      mamba_d_conv, mamba_expand;
  std::optional<bool> mamba_conv_bias;
  std::vector<double> time_step_limit;  ///< lowest and highest

  // Nemotron-H.
  std::optional<std::string> hybrid_override_pattern;
  std::optional<double> layer_norm_epsilon;
  std::optional<std::int64_t> mamba_num_heads, mamba_head_dim, ssm_state_size, n_groups,
      conv_kernel;
  std::optional<bool> use_conv_bias;

  // MiniMax.
  std::optional<double> full_attn_alpha_factor, full_attn_beta_factor, linear_attn_alpha_factor,
      linear_attn_beta_factor, mlp_alpha_factor, mlp_beta_factor;

  // Kimi Linear.
  LinearAttnConfig linear_attn_config;
  std::optional<std::int64_t> first_k_dense_replace;

  // Linear-Llama3.
  std::optional<std::string> linear_attention, feature_map;
  std::optional<bool> normalize;

  // No keys.
  runtime::DType dtype = runtime::DType::float32;  ///< of activations: float32 or bfloat16
  std::int64_t seq_len = 0;  ///< of the run, in tokens; for a rope that follows it
};

}  // namespace longhaul::models
