#pragma once
// Lightning attention as a block: norm, projection, silu, the sum rule with constant decays, norm
// over all heads, output gate and projection. Source: Qin et al. 2024; layers and names of Hugging
// Face's MiniMax.

#include <memory>
#include <string>

#include "models/recurrent_block.h"

namespace longhaul::models {

struct LightningShape {
  BranchShape branch = {};
  std::int64_t heads = 0, head_dim = 0;
  /// The layer's number among all of the model's, and theirs: they set the decays, head h's
  /// 2^(-8(h+1)/H) (1 - layer / (layers - 1 + 1e-5) + 1e-5) a token.
  std::int64_t layer = 0, layers = 1;
  double output_norm_eps = 1e-6;  ///< MiniMax's, whatever rms_norm_eps is
};

/// Parameters: `norm`; PREFIX with "qkv_proj.weight" [3 H D, h] (a head's rows of q, k and v),
/// "output_gate.weight" [H D, h], "norm.weight" [H D], "out_proj.weight" [h, H D].
class LightningBlock final : public RecurrentBlock {
 public:
  /// As GatedDeltaNetBlock.
  LightningBlock(const LightningShape& shape, std::size_t mask, const BlockNames& names, int group,
                 double stddev, double residual_stddev, parallel::ParameterTable& table);

 private:
  class Mixing;
  std::unique_ptr<Mixer> mixer(const PassContext& context) const override;
  MixerBytes mixer_bytes() const override;
  double weights() const override;

  const LightningShape shape_;
  std::string qkv_, gate_, output_norm_, out_;
};

}  // namespace longhaul::models
