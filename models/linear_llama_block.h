#pragma once
// Linear attention in the place of a Llama's softmax attention, as Linear-Llama3 has it: norm,
// projections, feature maps, the sum rule, normaliser or norm of heads, output gate, projection.
// Source: Sun et al. 2025 (LASP-2); Katharopoulos et al. 2020, Sun et al. 2023 (RetNet), Yang et
// al. 2024 (GLA) for its kinds.

#include <memory>
#include <string>

#include "models/recurrent_block.h"
#include "runtime/ops/feature_map.h"

namespace longhaul::models {

enum class LinearLlamaKind : unsigned char {
  basic,       ///< no decay, no gate
  decay,       ///< RetNet's: head h forgets log(1 - 2^(-5-h)) a token; q and k are rotated
  simple_gla,  ///< a decay a token and head
  gla          ///< a decay a token and key dim, through a bottleneck of 16
};
/// {"basic", "decay", "simple_gla", "gla"}.
std::span<const char* const> linear_llama_kinds();
/// Throws Error(config) listing the kinds.
LinearLlamaKind linear_llama_kind_of(const std::string& name);

struct LinearLlamaShape {
  BranchShape branch = {};
  LinearLlamaKind kind = LinearLlamaKind::basic;
  std::int64_t heads = 0, head_dim = 0;  ///< a multiple of the model's rotated dims, kind decay
  runtime::ops::FeatureMap feature_map = runtime::ops::FeatureMap::identity;
  /// Divides by the sum of weights, in the place of the norm of heads. Kind basic only: the gated
  /// kinds norm.
  bool normalize = false;
};

/// Parameters: `norm`; PREFIX with "q_proj.weight", "k_proj.weight", "v_proj.weight" [H D, h],
/// "o_proj.weight" [h, H D]; "g_norm.weight" [D] unless normalised; but for kind basic
/// "g_proj.weight" [H D, h], the output gate (silu); of the decays "gk_proj.weight" [H, h] and
/// "gk_proj.bias" [H] (simple_gla), "gk_proj.0.weight" [16, h], "gk_proj.1.weight" [H D, 16] and
/// "gk_proj.1.bias" [H D] (gla).
class LinearLlamaBlock final : public RecurrentBlock {
 public:
  /// As GatedDeltaNetBlock; biases begin at zero. Throws Error(config) for a normaliser with
  /// another kind than basic.
  LinearLlamaBlock(const LinearLlamaShape& shape, std::size_t mask, const BlockNames& names,
                   int group, double stddev, double residual_stddev,
                   parallel::ParameterTable& table);

 private:
  class Mixing;
  std::unique_ptr<Mixer> mixer(const PassContext& context) const override;
  MixerBytes mixer_bytes() const override;
  double weights() const override;

  const LinearLlamaShape shape_;
  std::string q_, v_, gate_, decay_low_, decay_, decay_bias_, head_norm_, o_;
};

}  // namespace longhaul::models
