#include <cmath>
#include <numbers>

#include "tests/support/llama_oracle.h"
#include "tests/support/recurrent_oracle.h"

namespace longhaul::test {
namespace {

using models::ModelConfig;
using Values = std::vector<double>;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// y[rows,out] = x[rows,in] W^T.
Values linear(const Values& x, const Values& weight, std::int64_t in) {
  const std::size_t width = at(in), rows = x.size() / width, outputs = weight.size() / width;
  Values y(rows * outputs);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t o = 0; o < outputs; ++o) {
      for (std::size_t i = 0; i < width; ++i)
        y[r * outputs + o] += x[r * width + i] * weight[o * width + i];
    }
  }
  return y;
}

/// The parameters of a layer by their names in it.
struct LayerWeights {
  const NamedValues& all;
  const std::string prefix;
  const Values& operator()(const std::string& name) const { return all.at(prefix + name); }
  bool has(const std::string& name) const { return all.contains(prefix + name); }

  /// x W^T, plus the bias of "x.weight" if there is "x.bias".
  Values linear(const Values& x, const std::string& matrix, std::int64_t in) const {
    Values y = test::linear(x, (*this)(matrix), in);
    const std::string bias = matrix.substr(0, matrix.rfind('.')) + ".bias";
    if (!has(bias)) return y;
    const Values& values = (*this)(bias);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += values[i % values.size()];
    return y;
  }
};

/// Columns [begin, end) of rows of `width`.
Values columns(const Values& rows, std::int64_t width, std::int64_t begin, std::int64_t end) {
  Values part;
  for (std::size_t row = 0; row < rows.size(); row += at(width))
    part.insert(part.end(), rows.begin() + static_cast<std::ptrdiff_t>(row) + begin,
                rows.begin() + static_cast<std::ptrdiff_t>(row) + end);
  return part;
}

/// Of rows as wide as the weight.
Values rms(const Values& x, const Values& weight, const OracleForm& form) {
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

bool slides(const ModelConfig& c, std::int64_t layer) {
  return !c.layer_types.empty() && c.layer_types[at(layer)] == "sliding_attention";
}

/// Gemma 3's sliding layers have a base of their own; the others are stretched, if at all.
void rotate(Values& x, const OracleBatch& batch, std::int64_t heads, const ModelConfig& c,
            std::int64_t turned, std::int64_t layer) {
  const std::int64_t dim = *c.head_dim, half = turned / 2;
  const bool local = c.rope_local_base_freq && slides(c, layer);
  const double theta = local ? *c.rope_local_base_freq : c.rope_theta.value_or(1),
               stretch = local ? 1 : c.rope_scaling.factor.value_or(1);
  for (std::size_t row = 0; row < batch.positions.size(); ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* v = &x[(row * at(heads) + at(head)) * at(dim)];
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(batch.positions[row]) / stretch *
            std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(turned));
        const double a = v[i], b = v[i + half];
        v[i] = a * std::cos(angle) - b * std::sin(angle);
        v[i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

/// A sliding layer's row r sees s > r - sliding_window only. `sinks`: none, or a logit a head.
Values attend(const Values& q, const Values& k, const Values& v, const OracleBatch& batch,
              const ModelConfig& c, const OracleForm& form, std::int64_t layer,
              const Values& sinks) {
  const bool slides = test::slides(c, layer);
  const std::size_t rows = batch.tokens.size(), heads = at(*c.num_attention_heads),
                    d = at(*c.head_dim);
  const std::size_t kv_heads = at(*c.num_key_value_heads);
  Values out(q.size());
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t head = 0; head < heads; ++head) {
      const std::size_t kv = head * kv_heads / heads;
      Values weights;
      double total = sinks.empty() ? 0 : std::exp(sinks[head]);
      for (std::size_t s = 0; s < rows; ++s) {
        double score = 0;
        for (std::size_t i = 0; i < d; ++i)
          score += q[(r * heads + head) * d + i] * k[(s * kv_heads + kv) * d + i];
        score *= form.scale;
        if (form.score_cap > 0) score = form.score_cap * std::tanh(score / form.score_cap);
        const bool near = !slides || s + at(*c.sliding_window) > r;
        const bool visible = batch.sees
                                 ? batch.sees(layer, r, s)
                                 : near && s <= r && batch.documents[s] == batch.documents[r];
        const double weight =
            form.sigmoid ? 1 / (1 + std::exp(-score - form.sigmoid_bias)) : std::exp(score);
        weights.push_back(visible ? weight : 0);
        total += weights.back();
      }
      if (form.sigmoid) total = 1;
      for (std::size_t s = 0; total > 0 && s < rows; ++s) {
        for (std::size_t i = 0; i < d; ++i) {
          out[(r * heads + head) * d + i] += weights[s] / total * v[(s * kv_heads + kv) * d + i];
        }
      }
    }
  }
  return out;
}

/// Attention of what the layer's branch sees, by its weights.
Values attention(const Values& in, const OracleBatch& batch, const ModelConfig& c,
                 const OracleForm& form, std::int64_t layer, const LayerWeights& w) {
  const std::int64_t heads = *c.num_attention_heads, kv_heads = *c.num_key_value_heads,
                     dim = *c.head_dim;
  Values q, k, v, gate;
  if (w.has(form.attention + "qkv_proj.weight")) {
    const Values all = w.linear(in, form.attention + "qkv_proj.weight", c.hidden_size);
    const std::int64_t key = heads * dim * (form.output_gate ? 2 : 1), value = key + kv_heads * dim,
                       width = value + kv_heads * dim;
    q = columns(all, width, 0, key);
    k = columns(all, width, key, value);
    v = columns(all, width, value, width);
  } else {
    q = w.linear(in, form.attention + "q_proj.weight", c.hidden_size);
    k = w.linear(in, form.attention + "k_proj.weight", c.hidden_size);
    v = w.linear(in, form.attention + "v_proj.weight", c.hidden_size);
  }
  if (form.output_gate) {  // a head's query, then its gate
    Values queries;
    for (std::size_t i = 0; i < q.size(); ++i)
      (i / at(dim) % 2 == 0 ? queries : gate).push_back(q[i]);
    q = queries;
  }
  if (form.qk_norm) {  // of heads, or of rows where the weights are as wide
    q = rms(q, w(form.attention + "q_norm.weight"), form);
    k = rms(k, w(form.attention + "k_norm.weight"), form);
  }
  rotate(q, batch, heads, c, form.turned, layer);
  rotate(k, batch, kv_heads, c, form.turned, layer);
  const bool sinks = w.has(form.attention + "sinks");
  Values out =
      attend(q, k, v, batch, c, form, layer, sinks ? w(form.attention + "sinks") : Values());
  for (std::size_t i = 0; i < gate.size(); ++i) out[i] /= 1 + std::exp(-gate[i]);
  return w.linear(out, form.attention + "o_proj.weight", heads * dim);
}

/// A layer that carries a state, of normalised rows.
Values recurrence(const Values& in, const OracleBatch& batch, const ModelConfig& c,
                  const OracleForm& form, std::int64_t layer, const NamedValues& p) {
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

double activated(double gate, const OracleForm& form) {
  if (!form.gelu) return gate / (1 + std::exp(-gate));
  const double z = std::sqrt(2 / std::numbers::pi) * (gate + 0.044715 * gate * gate * gate);
  return gate / 2 * (1 + std::tanh(z));
}

Values mlp(const Values& in, const ModelConfig& c, const OracleForm& form, const LayerWeights& w) {
  const std::int64_t h = c.hidden_size;
  if (c.architecture == "nemotron_h") {
    Values up = w.linear(in, "mixer.up_proj.weight", h);
    for (double& value : up) value = value > 0 ? value * value : 0;
    return w.linear(up, "mixer.down_proj.weight", *c.intermediate_size);
  }
  std::string gate_name = "mlp.gate_proj.weight", up_name = "mlp.up_proj.weight",
              down_name = "mlp.down_proj.weight", both_name = "mlp.gate_up_proj.weight";
  if (c.architecture == "minimax") {
    gate_name = "block_sparse_moe.experts.0.w1.weight";
    up_name = "block_sparse_moe.experts.0.w3.weight";
    down_name = "block_sparse_moe.experts.0.w2.weight";
  }
  Values gate, up;
  std::int64_t f = c.intermediate_size.value_or(0);
  if (c.architecture == "granitemoehybrid") {
    f = *c.shared_intermediate_size;
    both_name = "shared_mlp.input_linear.weight";
    down_name = "shared_mlp.output_linear.weight";
  }
  if (w.has(both_name)) {  // the gates' rows, then the ups'
    const Values both = w.linear(in, both_name, h);
    gate = columns(both, 2 * f, 0, f);
    up = columns(both, 2 * f, f, 2 * f);
  } else {
    gate = w.linear(in, gate_name, h);
    up = w.linear(in, up_name, h);
  }
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = activated(gate[i], form) * up[i];
  return w.linear(gate, down_name, f);
}

}  // namespace

OracleForm oracle_form(const ModelConfig& c) {
  OracleForm form;
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
    form.qk_norm = form.output_gate = true;
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
  } else if (c.architecture == "qwen3") {
    form.qk_norm = true;
  } else if (c.architecture == "phi3") {
    form.turned = static_cast<std::int64_t>(dim * *c.partial_rotary_factor);
  } else if (c.architecture == "olmo2") {
    form.qk_norm = true;
    form.attention_norm.clear();
    form.attention_norm_after = "post_attention_layernorm.weight";
    form.mlp_norm.clear();
    form.mlp_norm_after = "post_feedforward_layernorm.weight";
  } else if (c.architecture == "gemma2" || c.architecture == "gemma3_text") {
    form.norm_offset = 1;
    form.qk_norm = c.architecture == "gemma3_text";
    form.attention_norm_after = "post_attention_layernorm.weight";
    form.mlp_norm = "pre_feedforward_layernorm.weight";
    form.mlp_norm_after = "post_feedforward_layernorm.weight";
    form.scale = 1 / std::sqrt(*c.query_pre_attn_scalar);
    form.score_cap = c.attn_logit_softcapping.value_or(0);
    form.logit_cap = *c.final_logit_softcapping;
    form.gelu = true;
    form.embedding_multiplier = std::sqrt(static_cast<double>(c.hidden_size));
  }
  return form;
}

Values oracle_logits(const ModelConfig& c, const OracleForm& form, const NamedValues& p,
                     const OracleBatch& batch) {
  Values x;
  for (const std::int64_t token : batch.tokens) {
    for (std::int64_t i = 0; i < c.hidden_size; ++i)
      x.push_back(form.embedding_multiplier * p.at(form.embedding)[at(token * c.hidden_size + i)]);
  }
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const LayerWeights w{p, form.layers + std::to_string(layer) + "."};
    const auto norm = [&](const Values& rows, const std::string& name) {
      return name.empty() ? rows : rms(rows, w(name), form);
    };
    const auto add = [&](const Values& normed, const Values& f, const std::string& norm_after,
                         double alpha, double beta) {
      const Values joining = norm(f, norm_after);
      for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = alpha * (form.residual_of_norm ? normed[i] : x[i]) + beta * joining[i];
    };
    const char mixer = form.mixers[at(layer)];
    if (mixer == 'a') {
      const Values in = norm(x, form.attention_norm);
      add(in, attention(in, batch, c, form, layer, w), form.attention_norm_after,
          form.attention_alpha, form.attention_beta);
    } else if (mixer == 'r') {
      const Values in = norm(x, form.attention_norm);
      add(in, recurrence(in, batch, c, form, layer, p), "", form.linear_alpha, form.linear_beta);
    }
    if (form.mixer_and_mlp || mixer == '-') {
      const Values in = norm(x, form.mlp_norm);
      add(in, mlp(in, c, form, w), form.mlp_norm_after, form.mlp_alpha, form.mlp_beta);
    }
  }
  const std::string head = c.tie_word_embeddings.value_or(false) ? form.embedding : form.head;
  Values logits = linear(rms(x, p.at(form.final_norm), form), p.at(head), c.hidden_size);
  for (double& logit : logits) {
    logit /= form.logits_scaling;
    if (form.logit_cap > 0) logit = form.logit_cap * std::tanh(logit / form.logit_cap);
  }
  return logits;
}

Values oracle_logits(const ModelConfig& c, const NamedValues& p, const OracleBatch& batch) {
  return oracle_logits(c, oracle_form(c), p, batch);
}

double oracle_loss(const ModelConfig& c, const OracleForm& form, const NamedValues& p,
                   const OracleBatch& batch) {
  const Values logits = oracle_logits(c, form, p, batch);
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

double oracle_loss(const ModelConfig& c, const NamedValues& p, const OracleBatch& batch) {
  return oracle_loss(c, oracle_form(c), p, batch);
}

NamedValues oracle_gradients(const ModelConfig& c, const NamedValues& p, const OracleBatch& batch) {
  return oracle_gradients(c, oracle_form(c), p, batch);
}

NamedValues oracle_gradients(const ModelConfig& c, const OracleForm& form, NamedValues p,
                             const OracleBatch& batch) {
  constexpr double kStep =
      1e-4;  // error about step^4 of the fifth derivative, and 1e-16 / step of rounding
  NamedValues gradients;
  for (auto& [name, values] : p) {
    for (double& element : values) {
      const double kept = element;
      const auto loss_at = [&](double shift) {
        element = kept + shift * kStep;
        return oracle_loss(c, form, p, batch);
      };
      const double near = loss_at(1) - loss_at(-1), far = loss_at(2) - loss_at(-2);
      element = kept;
      gradients[name].push_back((8 * near - far) / (12 * kStep));
    }
  }
  return gradients;
}

}  // namespace longhaul::test
