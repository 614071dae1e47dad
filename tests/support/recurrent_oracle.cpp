#include "tests/support/recurrent_oracle.h"

#include <algorithm>
#include <cmath>

namespace longhaul::test {
namespace {

using Values = std::vector<double>;
using models::LinearLlamaKind;
using runtime::ops::FeatureMap;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x * sigmoid(x); }
double softplus(double x) { return std::log1p(std::exp(x)); }

/// y[n,out] = x[n,in] W^T.
Values linear(const Values& x, const Values& weight, std::size_t in) {
  const std::size_t rows = x.size() / in, outputs = weight.size() / in;
  Values y(rows * outputs);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t o = 0; o < outputs; ++o) {
      for (std::size_t i = 0; i < in; ++i) y[r * outputs + o] += x[r * in + i] * weight[o * in + i];
    }
  }
  return y;
}

/// Columns [begin, begin + count) of rows of `width`.
Values columns(const Values& x, std::size_t width, std::size_t begin, std::size_t count) {
  Values y;
  for (std::size_t row = 0; row < x.size(); row += width)
    for (std::size_t i = begin; i < begin + count; ++i) y.push_back(x[row + i]);
  return y;
}
/// silu of the causal convolution of each channel, zeros before a document.
Values convolved(const Values& x, const Values& taps, const Values& bias, std::int64_t width,
                 const OracleRows& rows) {
  const std::size_t n = rows.documents.size(), channels = taps.size() / at(width);
  Values y(x.size());
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t c = 0; c < channels; ++c) {
      double sum = bias.empty() ? 0 : bias[c];
      for (std::size_t back = 0; back < at(width) && back <= r; ++back) {
        if (rows.documents[r - back] != rows.documents[r]) break;
        sum += taps[c * at(width) + at(width) - 1 - back] * x[(r - back) * channels + c];
      }
      y[r * channels + c] = silu(sum);
    }
  }
  return y;
}

Values unit_length(const Values& x, std::size_t dim) {
  Values y;
  for (std::size_t head = 0; head < x.size(); head += dim) {
    double sum = 0;
    for (std::size_t i = 0; i < dim; ++i) sum += x[head + i] * x[head + i];
    for (std::size_t i = 0; i < dim; ++i) y.push_back(x[head + i] / std::sqrt(sum + 1e-6));
  }
  return y;
}

struct Recurrence {
  std::size_t heads, key_heads, dim, value_dim;
  double scale;
  Values q, k, v;
  Values log_decay;  // [H], [n,H] or [n,H,D]; empty: none
  Values beta;       // [n,H]: delta rule
};
Values outputs(const Recurrence& c, const OracleRows& rows) {
  const std::size_t n = rows.documents.size(), d = c.dim, e = c.value_dim;
  const bool vector = c.log_decay.size() == n * c.heads * d && d > 1,
             constant = c.log_decay.size() == c.heads && n > 1;
  Values out;
  std::vector<Values> states(c.heads);
  for (std::size_t t = 0; t < n; ++t) {
    const bool start = t == 0 || rows.documents[t] != rows.documents[t - 1];
    for (std::size_t head = 0; head < c.heads; ++head) {
      Values& state = states[head];  // [D,E]
      if (start) state.assign(d * e, 0);
      const std::size_t key = (t * c.key_heads + head * c.key_heads / c.heads) * d,
                        value = (t * c.heads + head) * e;
      for (std::size_t i = 0; i < d && !c.log_decay.empty(); ++i) {
        const std::size_t gate = constant ? head
                                 : vector ? (t * c.heads + head) * d + i
                                          : t * c.heads + head;
        for (std::size_t j = 0; j < e; ++j) state[i * e + j] *= std::exp(c.log_decay[gate]);
      }
      for (std::size_t j = 0; j < e; ++j) {
        double written = c.v[value + j];
        if (!c.beta.empty()) {
          for (std::size_t i = 0; i < d; ++i) written -= state[i * e + j] * c.k[key + i];
          written *= c.beta[t * c.heads + head];
        }
        for (std::size_t i = 0; i < d; ++i) state[i * e + j] += c.k[key + i] * written;
      }
      for (std::size_t j = 0; j < e; ++j) {
        double sum = 0;
        for (std::size_t i = 0; i < d; ++i) sum += state[i * e + j] * c.q[key + i];
        out.push_back(c.scale * sum);
      }
    }
  }
  return out;
}

double root(std::int64_t dim) { return 1 / std::sqrt(static_cast<double>(dim)); }

/// Groups of a row normed alone; the weight repeats along the row.
Values group_norm(const Values& x, const Values& weight, std::size_t group, double eps) {
  Values y;
  for (std::size_t begin = 0; begin < x.size(); begin += group) {
    double sum = 0;
    for (std::size_t i = begin; i < begin + group; ++i) sum += x[i] * x[i];
    const double rms = std::sqrt(sum / static_cast<double>(group) + eps);
    for (std::size_t i = begin; i < begin + group; ++i)
      y.push_back(x[i] / rms * weight[i % weight.size()]);
  }
  return y;
}
template <class Function>
Values times(Values x, const Values& gate, const Function& function) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= function(gate[i]);
  return x;
}

}  // namespace

Values oracle_norm(const Values& x, const Values& weight, double eps) {
  return group_norm(x, weight, weight.size(), eps);
}

Values oracle_mixer(const models::GatedDeltaNetShape& s, const NamedValues& p, const Values& normed,
                    const OracleRows& rows) {
  const std::size_t h = at(s.branch.hidden), heads = at(s.value_heads), keys = at(s.key_heads),
                    d = at(s.key_head_dim), e = at(s.value_head_dim), ratio = heads / keys,
                    n = rows.documents.size();
  Values qkv, z, b, a;
  if (s.projections == models::GatedDeltaNetProjections::plain) {
    qkv = linear(normed, p.at("in_proj_qkv.weight"), h);
    z = linear(normed, p.at("in_proj_z.weight"), h);
    b = linear(normed, p.at("in_proj_b.weight"), h);
    a = linear(normed, p.at("in_proj_a.weight"), h);
  } else {
    const Values all = linear(normed, p.at("in_proj_qkvz.weight"), h),
                 gates = linear(normed, p.at("in_proj_ba.weight"), h);
    const std::size_t step = 2 * d + 2 * ratio * e;
    const auto part = [&](const Values& from, std::size_t of_key, std::size_t begin,
                          std::size_t count, std::size_t row) {
      Values values;
      for (std::size_t key = 0; key < keys; ++key) {
        for (std::size_t i = begin; i < begin + count; ++i)
          values.push_back(from[(row * keys + key) * of_key + i]);
      }
      return values;
    };
    const auto append = [](Values& to, const Values& more) {
      to.insert(to.end(), more.begin(), more.end());
    };
    for (std::size_t row = 0; row < n; ++row) {
      append(qkv, part(all, step, 0, d, row));
      append(qkv, part(all, step, d, d, row));
      append(qkv, part(all, step, 2 * d, ratio * e, row));
      append(z, part(all, step, 2 * d + ratio * e, ratio * e, row));
      append(b, part(gates, 2 * ratio, 0, ratio, row));
      append(a, part(gates, 2 * ratio, ratio, ratio, row));
    }
  }
  const std::size_t channels = 2 * keys * d + heads * e;
  const Values mixed = convolved(qkv, p.at("conv1d.weight"), {}, s.conv_width, rows);
  Recurrence recurrence{heads,
                        keys,
                        d,
                        e,
                        root(s.key_head_dim),
                        unit_length(columns(mixed, channels, 0, keys * d), d),
                        unit_length(columns(mixed, channels, keys * d, keys * d), d),
                        columns(mixed, channels, 2 * keys * d, heads * e),
                        {},
                        {}};
  for (std::size_t i = 0; i < n * heads; ++i) {
    recurrence.beta.push_back((s.allow_negative_eigenvalues ? 2 : 1) * sigmoid(b[i]));
    recurrence.log_decay.push_back(-std::exp(p.at("A_log")[i % heads]) *
                                   softplus(a[i] + p.at("dt_bias")[i % heads]));
  }
  const Values out = times(
      group_norm(outputs(recurrence, rows), p.at("norm.weight"), e, s.branch.norm_eps), z, silu);
  return linear(out, p.at("out_proj.weight"), heads * e);
}

Values oracle_mixer(const models::KdaShape& s, const NamedValues& p, const Values& normed,
                    const OracleRows& rows) {
  const std::size_t h = at(s.branch.hidden), heads = at(s.heads), d = at(s.head_dim),
                    width = heads * d;
  const auto part = [&](const std::string& name) {
    return convolved(linear(normed, p.at(name + "_proj.weight"), h), p.at(name + "_conv1d.weight"),
                     {}, s.conv_width, rows);
  };
  const auto low_rank = [&](const std::string& name) {
    return linear(linear(normed, p.at(name + "_a_proj.weight"), h), p.at(name + "_b_proj.weight"),
                  d);
  };
  Recurrence recurrence{heads,
                        heads,
                        d,
                        d,
                        root(s.head_dim),
                        unit_length(part("q"), d),
                        unit_length(part("k"), d),
                        part("v"),
                        {},
                        {}};
  for (const double b : linear(normed, p.at("b_proj.weight"), h))
    recurrence.beta.push_back(sigmoid(b));
  const Values f = low_rank("f");
  for (std::size_t i = 0; i < f.size(); ++i) {
    const double u = f[i] + p.at("dt_bias")[i % width],
                 rate = std::exp(p.at("A_log")[i % width / d]);
    recurrence.log_decay.push_back(s.gate_lower_bound ? *s.gate_lower_bound * sigmoid(rate * u)
                                                      : -rate * softplus(u));
  }
  const Values out =
      times(group_norm(outputs(recurrence, rows), p.at("o_norm.weight"), d, s.branch.norm_eps),
            low_rank("g"), sigmoid);
  return linear(out, p.at("o_proj.weight"), width);
}

Values oracle_mixer(const models::Mamba2Shape& s, const NamedValues& p, const Values& normed,
                    const OracleRows& rows) {
  const std::size_t h = at(s.branch.hidden), heads = at(s.heads), e = at(s.head_dim),
                    d = at(s.state_dim), groups = at(s.groups), inner = heads * e,
                    channels = inner + 2 * groups * d, all = inner + channels + heads;
  const Values projected = linear(normed, p.at("in_proj.weight"), h),
               z = columns(projected, all, 0, inner),
               dt = columns(projected, all, inner + channels, heads);
  const Values mixed = convolved(columns(projected, all, inner, channels), p.at("conv1d.weight"),
                                 s.conv_bias ? p.at("conv1d.bias") : Values(), s.conv_width, rows);
  const Values x = columns(mixed, channels, 0, inner);
  Recurrence recurrence{heads,
                        groups,
                        d,
                        e,
                        1,
                        columns(mixed, channels, inner + groups * d, groups * d),
                        columns(mixed, channels, inner, groups * d),
                        x,
                        {},
                        {}};
  for (std::size_t i = 0; i < dt.size(); ++i) {
    const std::size_t head = i % heads;
    const double step = std::clamp(softplus(dt[i] + p.at("dt_bias")[head]), s.min_step, s.max_step);
    recurrence.log_decay.push_back(-std::exp(p.at("A_log")[head]) * step);
    for (std::size_t j = 0; j < e; ++j) recurrence.v[i * e + j] *= step;
  }
  Values y = outputs(recurrence, rows);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += p.at("D")[i / e % heads] * x[i];
  const Values out =
      group_norm(times(y, z, silu), p.at("norm.weight"), inner / groups, s.branch.norm_eps);
  return linear(out, p.at("out_proj.weight"), inner);
}

Values oracle_mixer(const models::LightningShape& s, const NamedValues& p, const Values& normed,
                    const OracleRows& rows) {
  const std::size_t h = at(s.branch.hidden), heads = at(s.heads), d = at(s.head_dim);
  Values qkv = linear(normed, p.at("qkv_proj.weight"), h);
  for (double& value : qkv) value = silu(value);
  Recurrence recurrence{heads, heads, d, d, 1, {}, {}, {}, {}, {}};
  for (std::size_t head = 0; head * 3 * d < qkv.size(); ++head) {  // of all rows
    for (std::size_t i = 0; i < d; ++i) {
      recurrence.q.push_back(qkv[head * 3 * d + i]);
      recurrence.k.push_back(qkv[head * 3 * d + d + i]);
      recurrence.v.push_back(qkv[head * 3 * d + 2 * d + i]);
    }
  }
  for (std::size_t head = 0; head < heads; ++head) {
    const double base = 1 / std::pow(2, 8 / static_cast<double>(heads)),
                 factor =
                     1 - static_cast<double>(s.layer) / (static_cast<double>(s.layers - 1) + 1e-5) +
                     1e-5;
    recurrence.log_decay.push_back(-std::pow(base, static_cast<double>(head + 1)) * factor);
  }
  const Values normed_out =
      group_norm(outputs(recurrence, rows), p.at("norm.weight"), heads * d, s.output_norm_eps);
  return linear(times(normed_out, linear(normed, p.at("output_gate.weight"), h), sigmoid),
                p.at("out_proj.weight"), heads * d);
}

Values oracle_mixer(const models::LinearLlamaShape& s, double rope_theta, const NamedValues& p,
                    const Values& normed, const OracleRows& rows) {
  const std::size_t h = at(s.branch.hidden), heads = at(s.heads), d = at(s.head_dim);
  const auto mapped = [&](const std::string& name) {
    Values x = linear(normed, p.at(name), h);
    for (double& value : x) {
      if (s.feature_map == FeatureMap::relu) value = std::max(value, 0.0);
      if (s.feature_map == FeatureMap::silu) value = silu(value);
      if (s.feature_map == FeatureMap::elu1) value = value > 0 ? value + 1 : std::exp(value);
    }
    if (s.kind != LinearLlamaKind::decay) return x;
    for (std::size_t head = 0; head * d < x.size(); ++head) {
      const auto position = static_cast<double>(rows.positions[head / heads]);
      for (std::size_t i = 0; i < d / 2; ++i) {
        const double angle =
            position * std::pow(rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
        const double a = x[head * d + i], b = x[head * d + i + d / 2];
        x[head * d + i] = a * std::cos(angle) - b * std::sin(angle);
        x[head * d + i + d / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
    return x;
  };
  Recurrence recurrence{heads,
                        heads,
                        d,
                        d,
                        root(s.head_dim),
                        mapped("q_proj.weight"),
                        mapped("k_proj.weight"),
                        linear(normed, p.at("v_proj.weight"), h),
                        {},
                        {}};
  const auto gate = [&](Values x, const Values& bias) {
    for (std::size_t i = 0; i < x.size(); ++i)
      recurrence.log_decay.push_back(-softplus(-x[i] - bias[i % bias.size()]) / 16);
  };
  if (s.kind == LinearLlamaKind::decay) {
    for (std::size_t head = 0; head < heads; ++head)
      recurrence.log_decay.push_back(std::log(1 - std::pow(2, -5 - static_cast<double>(head))));
  } else if (s.kind == LinearLlamaKind::simple_gla) {
    gate(linear(normed, p.at("gk_proj.weight"), h), p.at("gk_proj.bias"));
  } else if (s.kind == LinearLlamaKind::gla) {
    gate(linear(linear(normed, p.at("gk_proj.0.weight"), h), p.at("gk_proj.1.weight"), 16),
         p.at("gk_proj.1.bias"));
  }
  Values out = outputs(recurrence, rows);
  if (s.normalize) {
    Recurrence sums = recurrence;
    sums.value_dim = 1;
    sums.v.assign(rows.documents.size() * heads, 1);
    const Values denominators = outputs(sums, rows);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] /= denominators[i / d];
  } else {
    out = group_norm(out, p.at("g_norm.weight"), d, s.branch.norm_eps);
  }
  if (s.kind != LinearLlamaKind::basic)
    out = times(std::move(out), linear(normed, p.at("g_proj.weight"), h), silu);
  return linear(out, p.at("o_proj.weight"), heads * d);
}

}  // namespace longhaul::test
