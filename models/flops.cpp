#include "models/flops.h"

namespace longhaul::models {

double step_flops(const LlamaConfig& config, std::int64_t tokens, std::int64_t mask_area) {
  const auto h = static_cast<double>(config.hidden_size);
  const auto layers = static_cast<double>(config.num_hidden_layers);
  const auto queries = static_cast<double>(config.query_size());
  const auto keys = static_cast<double>(config.key_value_size());
  const double attention_weights = h * (2 * queries + 2 * keys);
  const double mlp_weights = 3 * h * static_cast<double>(config.intermediate_size);
  const double head_weights = h * static_cast<double>(config.vocab_size);
  const double weights = layers * (attention_weights + mlp_weights) + head_weights;
  return 6 * static_cast<double>(tokens) * weights +
         12 * layers * static_cast<double>(mask_area) * queries;
}

}  // namespace longhaul::models
