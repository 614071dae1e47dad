#pragma once
// The shape of a Llama model and the parameter table that follows from it.

#include <cstdint>
#include <string>

#include "parallel/parameters.h"
#include "runtime/dtype.h"

namespace longhaul::models {

/// Fields carry the names of Hugging Face's config.json.
struct LlamaConfig {
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000;
  bool tie_word_embeddings = false;
  std::int64_t vocab_size = 0;
  runtime::DType dtype = runtime::DType::float32;  ///< of activations: float32 or bfloat16

  std::int64_t query_size() const { return num_attention_heads * head_dim; }
  std::int64_t key_value_size() const { return num_key_value_heads * head_dim; }
};

/// Throws Error(config) naming the first field whose value cannot be, and what it must be.
void check(const LlamaConfig& config);

/// Group 0 is the embedding, group 1 + l layer l, the last group the final norm and, when it is not
/// tied, the head. Matrices are drawn from N(0, 0.02^2), those that write into the residual stream
/// (o_proj, down_proj) scaled by 1/sqrt(2 layers) (Radford et al. 2019, GPT-2); norms start at one.
/// Weight decay applies to matrices except the embedding, as is common practice; norms are free of
/// it.
parallel::ParameterTable parameter_table(const LlamaConfig& config);

/// "model.layers.L." + suffix.
std::string layer_name(std::int64_t layer, const std::string& suffix);

}  // namespace longhaul::models
