#include "models/llama_config.h"

#include "models/layer_types.h"
#include "runtime/error.h"

namespace longhaul::models {
namespace {

using runtime::ExitCode;
using runtime::fail;

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
  LayerMasks(config.layer_types, config.sliding_window, config.num_hidden_layers);
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

}  // namespace longhaul::models
