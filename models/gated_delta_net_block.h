#pragma once
// Gated DeltaNet as a block: norm, projections, short convolution, gates, the gated delta rule,
// gated norm, output projection. Source: Yang et al. 2025; layers and names of Hugging Face's
// Qwen3-Next and Qwen3.5.

#include <memory>
#include <string>

#include "models/recurrent_block.h"

namespace longhaul::models {

enum class GatedDeltaNetProjections : unsigned char {
  interleaved,  ///< in_proj_qkvz and in_proj_ba, by key head: Qwen3-Next
  plain         ///< in_proj_qkv, in_proj_z, in_proj_b, in_proj_a: Qwen3.5
};

/// The config.json keys are linear_num_key_heads, linear_num_value_heads, linear_key_head_dim,
/// linear_value_head_dim and linear_conv_kernel_dim.
struct GatedDeltaNetShape {
  BranchShape branch = {};
  std::int64_t key_heads = 0, value_heads = 0;  ///< the latter are a multiple of the former
  std::int64_t key_head_dim = 0, value_head_dim = 0;
  std::int64_t conv_width = 4;
  GatedDeltaNetProjections projections = GatedDeltaNetProjections::interleaved;
  /// beta in (0, 2) in the place of (0, 1) (Grazzi et al. 2024); not in Qwen's layers.
  bool allow_negative_eigenvalues = false;
};

/// Parameters: `norm`; PREFIX with "conv1d.weight" [2 H_k D + H E, 1, K], "A_log", "dt_bias" [H],
/// "norm.weight" [E], "out_proj.weight" [h, H E] and the projections, a key head's rows of q, k,
/// its values and their gates z one behind the other ("in_proj_qkvz.weight"), and of beta and decay
/// ("in_proj_ba.weight"); or plainly "in_proj_qkv.weight", "in_proj_z.weight", "in_proj_b.weight",
/// "in_proj_a.weight".
class GatedDeltaNetBlock final : public RecurrentBlock {
 public:
  /// Adds its parameters to the table. It sees mask number `mask` of a batch. `residual_stddev`: of
  /// the initial out_proj, `stddev` of the other matrices. A_log is drawn as log of U(0.01, 16),
  /// dt_bias is one, the convolution's taps as U(+-1/sqrt(K)).
  GatedDeltaNetBlock(const GatedDeltaNetShape& shape, std::size_t mask, const BlockNames& names,
                     int group, double stddev, double residual_stddev,
                     parallel::ParameterTable& table);

 private:
  class Mixing;
  std::unique_ptr<Mixer> mixer(const PassContext& context) const override;
  MixerBytes mixer_bytes() const override;
  double weights() const override;

  const GatedDeltaNetShape shape_;
  std::string qkv_, z_, b_, a_;  // interleaved: qkv_ is q, k, v and z, b_ is b and a
  std::string a_log_, dt_bias_, gated_norm_, out_;
};

}  // namespace longhaul::models
