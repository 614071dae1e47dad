#include <cmath>

#include "tests/support/llama_oracle.h"

namespace longhaul::test {
namespace {

using models::ModelConfig;
using Values = std::vector<double>;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

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

Values rms(const Values& x, const Values& weight, double eps) {
  const std::size_t h = weight.size();
  Values y(x.size());
  for (std::size_t row = 0; row < x.size(); row += h) {
    double mean = 0;
    for (std::size_t i = 0; i < h; ++i) mean += x[row + i] * x[row + i] / static_cast<double>(h);
    for (std::size_t i = 0; i < h; ++i) y[row + i] = x[row + i] / std::sqrt(mean + eps) * weight[i];
  }
  return y;
}

void rotate(Values& x, const OracleBatch& batch, std::int64_t heads, const ModelConfig& c) {
  const std::int64_t dim = *c.head_dim, half = dim / 2;
  for (std::size_t row = 0; row < batch.positions.size(); ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* v = &x[(row * at(heads) + at(head)) * at(dim)];
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(batch.positions[row]) *
            std::pow(*c.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
        const double a = v[i], b = v[i + half];
        v[i] = a * std::cos(angle) - b * std::sin(angle);
        v[i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

/// A sliding layer's row r sees s > r - sliding_window only.
Values attend(const Values& q, const Values& k, const Values& v, const OracleBatch& batch,
              const ModelConfig& c, std::int64_t layer) {
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
        weights.push_back(visible ? std::exp(score / std::sqrt(static_cast<double>(d))) : 0);
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

void add_to(Values& x, const Values& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace

Values oracle_logits(const ModelConfig& c, const NamedValues& p, const OracleBatch& batch) {
  Values x;
  for (const std::int64_t token : batch.tokens) {
    const auto row = p.at("model.embed_tokens.weight").begin() + token * c.hidden_size;
    x.insert(x.end(), row, row + c.hidden_size);
  }
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const auto w = [&](const char* suffix) -> const Values& {
      return p.at("model.layers." + std::to_string(layer) + "." + suffix);
    };
    const Values in = rms(x, w("input_layernorm.weight"), *c.rms_norm_eps);
    Values q = linear(in, w("self_attn.q_proj.weight"), c.hidden_size);
    Values k = linear(in, w("self_attn.k_proj.weight"), c.hidden_size);
    const Values v = linear(in, w("self_attn.v_proj.weight"), c.hidden_size);
    rotate(q, batch, *c.num_attention_heads, c);
    rotate(k, batch, *c.num_key_value_heads, c);
    add_to(x, linear(attend(q, k, v, batch, c, layer), w("self_attn.o_proj.weight"),
                     *c.num_attention_heads * *c.head_dim));
    const Values mid = rms(x, w("post_attention_layernorm.weight"), *c.rms_norm_eps);
    Values gate = linear(mid, w("mlp.gate_proj.weight"), c.hidden_size);
    const Values up = linear(mid, w("mlp.up_proj.weight"), c.hidden_size);
    for (std::size_t i = 0; i < gate.size(); ++i)
      gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    add_to(x, linear(gate, w("mlp.down_proj.weight"), *c.intermediate_size));
  }
  const std::string head = c.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  return linear(rms(x, p.at("model.norm.weight"), *c.rms_norm_eps), p.at(head), c.hidden_size);
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
      1e-3;  // error about step^4 of the fifth derivative, and 1e-16 / step of rounding
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
