#include "launch/model.h"

#include "models/llama.h"

namespace longhaul::launch {

models::Model make_model(const TrainConfig& config, std::int64_t vocabulary) {
  const ModelConfig& m = config.model;
  models::LlamaConfig llama;
  llama.hidden_size = m.hidden_size;
  llama.intermediate_size = m.intermediate_size;
  llama.num_hidden_layers = m.num_hidden_layers;
  llama.num_attention_heads = m.num_attention_heads;
  llama.num_key_value_heads = m.num_key_value_heads;
  llama.head_dim = m.head_dim;
  llama.rms_norm_eps = m.rms_norm_eps;
  llama.rope_theta = m.rope_theta;
  llama.tie_word_embeddings = m.tie_word_embeddings;
  llama.vocab_size = vocabulary;
  llama.dtype = config.training.dtype;
  models::ModelOptions options;
  options.recompute = config.activation_checkpoint.mode == "full" ? models::Recompute::full
                                                                  : models::Recompute::none;
  return models::llama(llama, options);
}

}  // namespace longhaul::launch
