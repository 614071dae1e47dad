#include "models/llama_config.h"

#include <cmath>

#include "runtime/error.h"

namespace longhaul::models {
namespace {

using runtime::ExitCode;
using runtime::fail;

constexpr double kStddev = 0.02;

void require_positive(const char* field, std::int64_t value) {
  if (value < 1) fail(ExitCode::config, "[model] ", field, " is ", value, "; expected at least 1");
}

}  // namespace

void check(const LlamaConfig& config) {
  require_positive("hidden_size", config.hidden_size);
  require_positive("intermediate_size", config.intermediate_size);
  require_positive("num_hidden_layers", config.num_hidden_layers);
  require_positive("num_attention_heads", config.num_attention_heads);
  require_positive("num_key_value_heads", config.num_key_value_heads);
  require_positive("head_dim", config.head_dim);
  require_positive("vocab_size", config.vocab_size);
  if (config.head_dim % 2 != 0) {
    fail(ExitCode::config, "[model] head_dim is ", config.head_dim,
         "; rotary embedding needs an even number");
  }
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    fail(ExitCode::config, "[model] num_attention_heads is ", config.num_attention_heads,
         "; expected a multiple of num_key_value_heads, ", config.num_key_value_heads);
  }
  if (!(config.rms_norm_eps > 0)) {
    fail(ExitCode::config, "[model] rms_norm_eps is ", config.rms_norm_eps,
         "; expected more than 0");
  }
  if (!(config.rope_theta > 0)) {
    fail(ExitCode::config, "[model] rope_theta is ", config.rope_theta, "; expected more than 0");
  }
  if (config.dtype != runtime::DType::float32 && config.dtype != runtime::DType::bfloat16) {
    fail(ExitCode::config, "[training] dtype is ", name(config.dtype),
         "; expected float32 or bfloat16");
  }
}

std::string layer_name(std::int64_t layer, const std::string& suffix) {
  return "model.layers." + std::to_string(layer) + "." + suffix;
}

parallel::ParameterTable parameter_table(const LlamaConfig& config) {
  check(config);
  const std::int64_t h = config.hidden_size, f = config.intermediate_size;
  const double residual = kStddev / std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers));
  parallel::ParameterTable table;
  int group = 0;
  const auto matrix = [&](const std::string& name, std::int64_t out, std::int64_t in, double stddev,
                          int tensor_dim, bool decay = true) {
    table.add(
        {name, {out, in}, parallel::Initialisation::normal, stddev, decay, tensor_dim, group, {}});
  };
  const auto norm = [&](const std::string& name) {
    table.add({name, {h}, parallel::Initialisation::ones, 0, false, -1, group, {}});
  };

  matrix("model.embed_tokens.weight", config.vocab_size, h, kStddev, 0, false);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    ++group;
    norm(layer_name(layer, "input_layernorm.weight"));
    matrix(layer_name(layer, "self_attn.q_proj.weight"), config.query_size(), h, kStddev, 0);
    matrix(layer_name(layer, "self_attn.k_proj.weight"), config.key_value_size(), h, kStddev, 0);
    matrix(layer_name(layer, "self_attn.v_proj.weight"), config.key_value_size(), h, kStddev, 0);
    matrix(layer_name(layer, "self_attn.o_proj.weight"), h, config.query_size(), residual, 1);
    norm(layer_name(layer, "post_attention_layernorm.weight"));
    matrix(layer_name(layer, "mlp.gate_proj.weight"), f, h, kStddev, 0);
    matrix(layer_name(layer, "mlp.up_proj.weight"), f, h, kStddev, 0);
    matrix(layer_name(layer, "mlp.down_proj.weight"), h, f, residual, 1);
  }
  ++group;
  norm("model.norm.weight");
  if (!config.tie_word_embeddings) matrix("lm_head.weight", config.vocab_size, h, kStddev, 0);
  return table;
}

}  // namespace longhaul::models
