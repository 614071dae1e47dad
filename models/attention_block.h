#pragma once
// Softmax attention as a block: norm, projections, the attention call, output projection. The only
// caller of softmax attention.

#include <optional>
#include <string>

#include "models/block.h"
#include "models/branch.h"

namespace longhaul::models {

/// Defaults are Llama's.
struct AttentionShape {
  BranchShape branch = {};
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::optional<double> scale = {};  ///< of scores; none: 1/sqrt(head_dim)
  /// RMSNorm of each head of q and k before they are rotated, weights [head_dim] with the branch's
  /// eps and offset (Henry et al. 2020, QK-Norm; as Qwen3 has it).
  bool qk_norm = false;
  /// out * sigmoid(gate) before the output projection; a head's rows of q_proj are its query's,
  /// then its gate's (Qiu et al. 2025).
  bool output_gate = false;
};

/// Parameters: `norm`; PREFIX with "q_proj.weight" [heads * head_dim, hidden], twice the rows with
/// an output gate, "k_proj.weight", "v_proj.weight", "o_proj.weight"; "q_norm.weight" and
/// "k_norm.weight" with qk_norm.
class AttentionBlock final : public Block {
 public:
  /// Adds its parameters to the table. It sees mask number `mask` of a batch, and turns as many
  /// dims of q and k as the model's tables have. `residual_stddev`: of the initial o_proj, `stddev`
  /// of the other matrices.
  AttentionBlock(const AttentionShape& shape, std::size_t mask, const BlockNames& names, int group,
                 double stddev, double residual_stddev, parallel::ParameterTable& table);

  std::unique_ptr<BlockPass> begin(const PassContext& context) const override;
  void prepare(
      const parallel::Attention& attention, const parallel::Expression& scheme,
      std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks) const override;
  double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const override;
  std::int64_t kept_bytes(std::int64_t rows) const override;
  PassingBytes passing_bytes(std::int64_t rows, const parallel::CallBytes& call) const override;
  std::optional<AttentionCall> attention_call() const override;

 private:
  class Pass;
  attention::Scoring scoring() const;

  const AttentionShape shape_;
  const std::size_t mask_;
  const Branch branch_;
  const std::string q_, k_, v_, o_, q_norm_, k_norm_;  // names of parameters
};

}  // namespace longhaul::models
