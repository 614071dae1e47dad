#pragma once
// Kimi Delta Attention as a block: norm, projections, short convolutions, gates, the delta rule
// with a decay a key dim, gated norm, output projection. Source: Kimi Team 2025 (Kimi Linear);
// names of its published weights.

#include <memory>
#include <optional>
#include <string>

#include "models/recurrent_block.h"

namespace longhaul::models {

/// linear_attn_config.{num_heads, head_dim, short_conv_kernel_size} of a config.json.
struct KdaShape {
  BranchShape branch = {};
  std::int64_t heads = 0, head_dim = 0;
  std::int64_t conv_width = 4;
  std::optional<double> gate_lower_bound = {};  ///< negative; none: softplus, without a bound
};

/// Parameters: `norm`; PREFIX with "q_proj.weight", "k_proj.weight", "v_proj.weight" [H D, h],
/// "q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight" [H D, 1, K], "A_log" [1, 1, H, 1],
/// "dt_bias" [H D], "f_a_proj.weight" [D, h], "f_b_proj.weight" [H D, D], "b_proj.weight" [H, h],
/// "g_a_proj.weight" [D, h], "g_b_proj.weight" [H D, D], "o_norm.weight" [D], "o_proj.weight"
/// [h, H D].
class KdaBlock final : public RecurrentBlock {
 public:
  /// As GatedDeltaNetBlock. A_log is drawn as log of U(1, 16), or 0 where the gate is bounded;
  /// softplus(dt_bias) as e^U between 0.001 and 0.1.
  KdaBlock(const KdaShape& shape, std::size_t mask, const BlockNames& names, int group,
           double stddev, double residual_stddev, parallel::ParameterTable& table);

 private:
  class Mixing;
  std::unique_ptr<Mixer> mixer(const PassContext& context) const override;
  MixerBytes mixer_bytes() const override;
  double weights() const override;

  const KdaShape shape_;
  std::string q_, v_, b_, f_a_, f_b_, g_a_, g_b_, a_log_, dt_bias_, o_norm_, o_;
};

}  // namespace longhaul::models
