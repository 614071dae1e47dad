#pragma once
// The shape of a Llama model.

#include <cstdint>
#include <string>
#include <vector>

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
  std::vector<std::string> layer_types = {};  ///< of each layer (layer_types.h); none: all full
  std::int64_t sliding_window = 0;            ///< tokens; of sliding_attention
  runtime::DType dtype = runtime::DType::float32;  ///< of activations: float32 or bfloat16
};

/// Throws Error(config) naming the first field whose value cannot be, and what it must be.
void check(const LlamaConfig& config);

}  // namespace longhaul::models
