#pragma once
// Mamba-2 as a block: norm, projection, short convolution, time steps, the sum rule with a decay a
// token, skip, gated norm, output projection. Source: Dao and Gu 2024; layers and names of Hugging
// Face's Granite-4 hybrids and Nemotron-H.

#include <limits>
#include <memory>
#include <string>

#include "models/recurrent_block.h"

namespace longhaul::models {

/// Of a config.json, Granite's and Nemotron-H's: mamba_n_heads (mamba_num_heads), mamba_d_head
/// (mamba_head_dim), mamba_d_state (ssm_state_size), mamba_n_groups (n_groups), mamba_d_conv
/// (conv_kernel), mamba_conv_bias (use_conv_bias), time_step_limit.
struct Mamba2Shape {
  BranchShape branch = {};
  std::int64_t heads = 0, head_dim = 0;  ///< inner width: their product
  std::int64_t state_dim = 0;
  std::int64_t groups = 1;  ///< of heads that share B and C, and of the norm; divides heads
  std::int64_t conv_width = 4;
  bool conv_bias = true;
  double min_step = 0, max_step = std::numeric_limits<double>::infinity();
};

/// Parameters: `norm`; PREFIX with "in_proj.weight" [2 H E + 2 G D + H, h] (the rows of z, x, B, C,
/// dt), "conv1d.weight" [H E + 2 G D, 1, K], "conv1d.bias", "dt_bias", "A_log", "D" [H],
/// "norm.weight" [H E], "out_proj.weight" [h, H E]; E = head_dim, D = state_dim.
class Mamba2Block final : public RecurrentBlock {
 public:
  /// As GatedDeltaNetBlock. A_log is drawn as log of U(1, 16), softplus(dt_bias) as e^U between
  /// 0.001 and 0.1; D is one, the convolution's bias zero.
  Mamba2Block(const Mamba2Shape& shape, std::size_t mask, const BlockNames& names, int group,
              double stddev, double residual_stddev, parallel::ParameterTable& table);

 private:
  class Mixing;
  std::unique_ptr<Mixer> mixer(const PassContext& context) const override;
  MixerBytes mixer_bytes() const override;
  double weights() const override;

  const Mamba2Shape shape_;
  std::string in_, dt_bias_, a_log_, d_, gated_norm_, out_;
};

}  // namespace longhaul::models
