#include <cmath>

#include "tests/support/llama_oracle.h"
#include "tests/support/recurrent_oracle.h"

namespace longhaul::test {
namespace {

using models::ModelConfig;
using Values = std::vector<double>;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// How a family differs from Llama. Written from the families' definitions, apart from models/.
struct Form {
  std::string embedding = "model.embed_tokens.weight", layers = "model.layers.",
              final_norm = "model.norm.weight", head = "lm_head.weight";
  std::string attention_norm = "input_layernorm.weight", attention = "self_attn.",
              mlp_norm = "post_attention_layernorm.weight";
  double eps = 0, norm_offset = 0;
  bool qk_norm = false, gate = false;
  std::int64_t turned = 0;  // dims of a head
  double scale = 0;
  double embedding_multiplier = 1, logits_scaling = 1;
  double attention_alpha = 1, attention_beta = 1, mlp_alpha = 1, mlp_beta = 1;
  bool residual_of_norm = false;
  double linear_alpha = 1, linear_beta = 1;  // of layers with a state
  std::string recurrence;                    // the prefix of their names
  std::string mixers;                        // of each layer: 'a'ttention, 'r'ecurrence, '-' none
  bool mixer_and_mlp = true;                 // in each layer; else an MLP where there is no mixer
};

Form form_of(const ModelConfig& c) {
  Form form;
  form.eps = c.rms_norm_eps.value_or(0);
  const auto dim = static_cast<double>(c.head_dim.value_or(1));
  form.turned = c.head_dim.value_or(0);
  form.scale = 1 / std::sqrt(dim);
  form.mixers = std::string(at(c.num_hidden_layers), 'a');
  for (std::size_t layer = 0; layer < c.layer_types.size(); ++layer) {
    if (c.layer_types[layer] == "linear_attention" || c.layer_types[layer] == "mamba")
      form.mixers[layer] = 'r';
  }
  form.recurrence = "self_attn.";
  if (c.architecture == "qwen3_next" || c.architecture == "qwen3_5") {
    form.norm_offset = 1;
    form.qk_norm = form.gate = true;
    form.recurrence = "linear_attn.";
    form.turned = static_cast<std::int64_t>(dim * *c.partial_rotary_factor);
  } else if (c.architecture == "granitemoehybrid") {
    form.turned = c.position_embedding_type == "rope" ? *c.head_dim : 0;
    form.scale = *c.attention_multiplier;
    form.embedding_multiplier = *c.embedding_multiplier;
    form.logits_scaling = *c.logits_scaling;
    form.attention_beta = form.linear_beta = form.mlp_beta = *c.residual_multiplier;
    form.recurrence = "mamba.";
  } else if (c.architecture == "minimax") {
    form.residual_of_norm = true;
    form.attention_alpha = *c.full_attn_alpha_factor;
    form.attention_beta = *c.full_attn_beta_factor;
    form.linear_alpha = c.linear_attn_alpha_factor.value_or(1);
    form.linear_beta = c.linear_attn_beta_factor.value_or(1);
    form.mlp_alpha = *c.mlp_alpha_factor;
    form.mlp_beta = *c.mlp_beta_factor;
  } else if (c.architecture == "nemotron_h") {
    form.embedding = "backbone.embeddings.weight";
    form.layers = "backbone.layers.";
    form.final_norm = "backbone.norm_f.weight";
    form.attention_norm = form.mlp_norm = "norm.weight";
    form.attention = form.recurrence = "mixer.";
    form.mixer_and_mlp = false;
    form.eps = *c.layer_norm_epsilon;
    form.turned = 0;
    for (std::size_t layer = 0; layer < form.mixers.size(); ++layer) {
      const char letter = (*c.hybrid_override_pattern)[layer];
      form.mixers[layer] = letter == '*' ? 'a' : letter == 'M' ? 'r' : '-';
    }
  } else if (c.architecture == "kimi_linear") {
    form.mixers = std::string(at(c.num_hidden_layers), 'r');
  }
  return form;
}

/// y[rows,out] = x[rows,in] W^T.
Values linear(const Values& x, const Values& weight, std::int64_t in) {
  const std::size_t columns = at(in), rows = x.size() / columns, outputs = weight.size() / columns;
  Values y(rows * outputs);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t o = 0; o < outputs; ++o) {
      for (std::size_t i = 0; i < columns; ++i)
        y[r * outputs + o] += x[r * columns + i] * weight[o * columns + i];
    }
  }
  return y;
}

/// Of rows as wide as the weight.
Values rms(const Values& x, const Values& weight, const Form& form) {
  const std::size_t h = weight.size();
  Values y(x.size());
  for (std::size_t row = 0; row < x.size(); row += h) {
    double mean = 0;
    for (std::size_t i = 0; i < h; ++i) mean += x[row + i] * x[row + i] / static_cast<double>(h);
    for (std::size_t i = 0; i < h; ++i)
      y[row + i] = x[row + i] / std::sqrt(mean + form.eps) * (form.norm_offset + weight[i]);
  }
  return y;
}

void rotate(Values& x, const OracleBatch& batch, std::int64_t heads, const ModelConfig& c,
            std::int64_t turned) {
  const std::int64_t dim = *c.head_dim, half = turned / 2;
  for (std::size_t row = 0; row < batch.positions.size(); ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* v = &x[(row * at(heads) + at(head)) * at(dim)];
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(batch.positions[row]) *
            std::pow(*c.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(turned));
        const double a = v[i], b = v[i + half];
        v[i] = a * std::cos(angle) - b * std::sin(angle);
        v[i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

/// A sliding layer's row r sees s > r - sliding_window only.
Values attend(const Values& q, const Values& k, const Values& v, const OracleBatch& batch,
              const ModelConfig& c, std::int64_t layer, double scale) {
  const bool slides = !c.layer_types.empty() && c.layer_types[at(layer)] == "sliding_attention";
  const std::size_t rows = batch.tokens.size(), heads = at(*c.num_attention_heads),
                    d = at(*c.head_dim);
  const std::size_t kv_heads = at(*c.num_key_value_heads);
  Values out(q.size());
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t head = 0; head < heads; ++head) {
      const std::size_t kv = head * kv_heads / heads;
      Values weights;
      double total = 0;
      for (std::size_t s = 0; s < rows; ++s) {
        double score = 0;
        for (std::size_t i = 0; i < d; ++i)
          score += q[(r * heads + head) * d + i] * k[(s * kv_heads + kv) * d + i];
        const bool near = !slides || s + at(*c.sliding_window) > r;
        const bool visible = batch.sees
                                 ? batch.sees(layer, r, s)
                                 : near && s <= r && batch.documents[s] == batch.documents[r];
        weights.push_back(visible ? std::exp(score * scale) : 0);
        total += weights.back();
      }
      for (std::size_t s = 0; total > 0 && s < rows; ++s) {
        for (std::size_t i = 0; i < d; ++i) {
          out[(r * heads + head) * d + i] += weights[s] / total * v[(s * kv_heads + kv) * d + i];
        }
      }
    }
  }
  return out;
}

/// Softmax attention of normalised rows, by the layer's weights.
template <class Weights>
Values attention(const Values& in, const OracleBatch& batch, const ModelConfig& c, const Form& form,
                 std::int64_t layer, const Weights& w) {
  const std::int64_t heads = *c.num_attention_heads, kv_heads = *c.num_key_value_heads,
                     dim = *c.head_dim;
  Values q = linear(in, w(form.attention + "q_proj.weight"), c.hidden_size), gate;
  if (form.gate) {  // a head's query, then its gate
    Values queries;
    for (std::size_t i = 0; i < q.size(); ++i)
      (i / at(dim) % 2 == 0 ? queries : gate).push_back(q[i]);
    q = queries;
  }
  Values k = linear(in, w(form.attention + "k_proj.weight"), c.hidden_size);
  const Values v = linear(in, w(form.attention + "v_proj.weight"), c.hidden_size);
  if (form.qk_norm) {
    q = rms(q, w(form.attention + "q_norm.weight"), form);
    k = rms(k, w(form.attention + "k_norm.weight"), form);
  }
  rotate(q, batch, heads, c, form.turned);
  rotate(k, batch, kv_heads, c, form.turned);
  Values out = attend(q, k, v, batch, c, layer, form.scale);
  for (std::size_t i = 0; i < gate.size(); ++i) out[i] /= 1 + std::exp(-gate[i]);
  return linear(out, w(form.attention + "o_proj.weight"), heads * dim);
}

/// A layer that carries a state, of normalised rows.
Values recurrence(const Values& in, const OracleBatch& batch, const ModelConfig& c,
                  const Form& form, std::int64_t layer, const NamedValues& p) {
  const std::string prefix = form.layers + std::to_string(layer) + "." + form.recurrence;
  NamedValues own;
  for (const auto& [name, values] : p) {
    if (name.starts_with(prefix)) own[name.substr(prefix.size())] = values;
  }
  const OracleRows rows{batch.documents, batch.positions};
  const models::BranchShape branch{.hidden = c.hidden_size, .norm_eps = form.eps};
  if (c.architecture == "qwen3_next" || c.architecture == "qwen3_5") {
    using enum models::GatedDeltaNetProjections;
    return oracle_mixer(
        models::GatedDeltaNetShape{branch, *c.linear_num_key_heads, *c.linear_num_value_heads,
                                   *c.linear_key_head_dim, *c.linear_value_head_dim,
                                   c.linear_conv_kernel_dim.value_or(4),
                                   c.architecture == "qwen3_next" ? interleaved : plain},
        own, in, rows);
  }
  if (c.architecture == "granitemoehybrid") {
    return oracle_mixer(models::Mamba2Shape{branch, *c.mamba_n_heads, *c.mamba_d_head,
                                            *c.mamba_d_state, c.mamba_n_groups.value_or(1)},
                        own, in, rows);
  }
  if (c.architecture == "nemotron_h") {
    return oracle_mixer(
        models::Mamba2Shape{branch, *c.mamba_num_heads, *c.mamba_head_dim, *c.ssm_state_size,
                            *c.n_groups, c.conv_kernel.value_or(4)},
        own, in, rows);
  }
  if (c.architecture == "minimax") {
    return oracle_mixer(models::LightningShape{branch, *c.num_attention_heads, *c.head_dim, layer,
                                               c.num_hidden_layers},
                        own, in, rows);
  }
  if (c.architecture == "kimi_linear") {
    return oracle_mixer(
        models::KdaShape{branch, *c.linear_attn_config.num_heads, *c.linear_attn_config.head_dim,
                         c.linear_attn_config.short_conv_kernel_size.value_or(4)},
        own, in, rows);
  }
  return oracle_mixer(
      models::LinearLlamaShape{branch, models::linear_llama_kind_of(*c.linear_attention),
                               *c.num_attention_heads, *c.head_dim,
                               runtime::ops::feature_map_of(*c.feature_map), *c.normalize},
      *c.rope_theta, own, in, rows);
}

template <class Weights>
Values mlp(const Values& in, const ModelConfig& c, const Weights& w) {
  const std::int64_t h = c.hidden_size;
  if (c.architecture == "nemotron_h") {
    Values up = linear(in, w("mixer.up_proj.weight"), h);
    for (double& value : up) value = value > 0 ? value * value : 0;
    return linear(up, w("mixer.down_proj.weight"), *c.intermediate_size);
  }
  std::string gate_name = "mlp.gate_proj.weight", up_name = "mlp.up_proj.weight",
              down_name = "mlp.down_proj.weight";
  if (c.architecture == "minimax") {
    gate_name = "block_sparse_moe.experts.0.w1.weight";
    up_name = "block_sparse_moe.experts.0.w3.weight";
    down_name = "block_sparse_moe.experts.0.w2.weight";
  }
  Values gate, up;
  std::int64_t f = c.intermediate_size.value_or(0);
  if (c.architecture == "granitemoehybrid") {  // the gates' rows, then the ups'
    f = *c.shared_intermediate_size;
    down_name = "shared_mlp.output_linear.weight";
    const Values both = linear(in, w("shared_mlp.input_linear.weight"), h);
    for (std::size_t i = 0; i < both.size(); ++i)
      (i / at(f) % 2 == 0 ? gate : up).push_back(both[i]);
  } else {
    gate = linear(in, w(gate_name), h);
    up = linear(in, w(up_name), h);
  }
  for (std::size_t i = 0; i < gate.size(); ++i)
    gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return linear(gate, w(down_name), f);
}

}  // namespace

Values oracle_logits(const ModelConfig& c, const NamedValues& p, const OracleBatch& batch) {
  const Form form = form_of(c);
  Values x;
  for (const std::int64_t token : batch.tokens) {
    for (std::int64_t i = 0; i < c.hidden_size; ++i)
      x.push_back(form.embedding_multiplier * p.at(form.embedding)[at(token * c.hidden_size + i)]);
  }
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const auto w = [&](const std::string& suffix) -> const Values& {
      return p.at(form.layers + std::to_string(layer) + "." + suffix);
    };
    const auto add = [&](const Values& normed, const Values& f, double alpha, double beta) {
      for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = alpha * (form.residual_of_norm ? normed[i] : x[i]) + beta * f[i];
    };
    const char mixer = form.mixers[at(layer)];
    if (mixer == 'a') {
      const Values in = rms(x, w(form.attention_norm), form);
      add(in, attention(in, batch, c, form, layer, w), form.attention_alpha, form.attention_beta);
    } else if (mixer == 'r') {
      const Values in = rms(x, w(form.attention_norm), form);
      add(in, recurrence(in, batch, c, form, layer, p), form.linear_alpha, form.linear_beta);
    }
    if (form.mixer_and_mlp || mixer == '-') {
      const Values in = rms(x, w(form.mlp_norm), form);
      add(in, mlp(in, c, w), form.mlp_alpha, form.mlp_beta);
    }
  }
  const std::string head = c.tie_word_embeddings.value_or(false) ? form.embedding : form.head;
  Values logits = linear(rms(x, p.at(form.final_norm), form), p.at(head), c.hidden_size);
  for (double& logit : logits) logit /= form.logits_scaling;
  return logits;
}

double oracle_loss(const ModelConfig& c, const NamedValues& p, const OracleBatch& batch) {
  const Values logits = oracle_logits(c, p, batch);
  double loss = 0;
  for (std::size_t row = 0; row < batch.labels.size(); ++row) {
    if (batch.labels[row] < 0) continue;
    const double* line = &logits[row * at(*c.vocab_size)];
    double total = 0;
    for (std::int64_t i = 0; i < *c.vocab_size; ++i) total += std::exp(line[i]);
    const double weight = batch.label_weights.empty() ? 1 : batch.label_weights[row];
    loss += weight * (std::log(total) - line[batch.labels[row]]);
  }
  return loss;
}

NamedValues oracle_gradients(const ModelConfig& c, NamedValues p, const OracleBatch& batch) {
  constexpr double kStep =
      1e-4;  // error about step^4 of the fifth derivative, and 1e-16 / step of rounding
  NamedValues gradients;
  for (auto& [name, values] : p) {
    for (double& element : values) {
      const double kept = element;
      const auto loss_at = [&](double shift) {
        element = kept + shift * kStep;
        return oracle_loss(c, p, batch);
      };
      const double near = loss_at(1) - loss_at(-1), far = loss_at(2) - loss_at(-2);
      element = kept;
      gradients[name].push_back((8 * near - far) / (12 * kStep));
    }
  }
  return gradients;
}

}  // namespace longhaul::test
