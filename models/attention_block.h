#pragma once
// Softmax attention as a block: norm, projections, the attention call, output projection. The only
// caller of softmax attention.

#include <cstddef>
#include <optional>
#include <string>

#include "attention/block.h"
#include "models/block.h"
#include "models/branch.h"
#include "models/projection.h"

namespace longhaul::models {

/// RMSNorm of q and k before they are rotated, with the branch's eps and offset.
enum class QkNorm : unsigned char {
  none,
  head,  ///< of each head, weights [head_dim] (Henry et al. 2020, QK-Norm; as Qwen3 has it)
  row    ///< of all heads together, weights [heads * head_dim] and [kv_heads * head_dim] (OLMo 2)
};

/// Defaults are Llama's.
struct AttentionShape {
  BranchShape branch = {};
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::optional<double> scale = {};  ///< of scores; none: 1/sqrt(head_dim)
  double softcap = 0;                ///< of scores, see attention::Scoring
  attention::Weighting weighting = attention::Weighting::softmax;
  double bias = 0;  ///< of a sigmoid's scores
  bool qkv_bias =
      false;            ///< "q_proj.bias", "k_proj.bias" and "v_proj.bias"; fused, "qkv_proj.bias"
  bool o_bias = false;  ///< "o_proj.bias"
  /// A logit for each head in the denominator that has no value, "sinks" [heads] (gpt-oss).
  bool sinks = false;
  QkNorm qk_norm = QkNorm::none;
  /// Rows of q, k and v are one matrix by name: "qkv_proj.weight" (Phi-3).
  bool fused_qkv = false;
  std::optional<std::size_t> rope = 0;  ///< among ModelParts::ropes; none: positions turn nothing
  /// out * sigmoid(gate) before the output projection; a head's rows of q_proj are its query's,
  /// then its gate's (Qiu et al. 2025).
  bool output_gate = false;
};

/// Parameters: `norm`; PREFIX with "q_proj.weight" [heads * head_dim, hidden], twice the rows with
/// an output gate, "k_proj.weight", "v_proj.weight", or these three as "qkv_proj.weight"; their
/// biases; "o_proj.weight" and its bias; "q_norm.weight" and "k_norm.weight" with qk_norm; "sinks".
class AttentionBlock final : public Block {
 public:
  /// Adds its parameters to the table. It sees mask number `mask` of a batch, and turns as many
  /// dims of q and k as the model's tables have. `residual_stddev`: of the initial o_proj, `stddev`
  /// of the other matrices and the sinks. Throws Error(config) for sinks of a sigmoid or a bias of
  /// a softmax's scores.
  AttentionBlock(const AttentionShape& shape, std::size_t mask, const BlockNames& names, int group,
                 double stddev, double residual_stddev, parallel::ParameterTable& table);

  std::unique_ptr<BlockPass> begin(const PassContext& context) const override;
  void prepare(const parallel::Attention& attention, const parallel::Expression& scheme,
               std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks,
               Recompute recompute) const override;
  double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const override;
  std::int64_t kept_bytes(std::int64_t rows) const override;
  std::int64_t received_bytes(std::int64_t rows, const parallel::CallBytes& call,
                              Recompute recompute) const override;
  PassingBytes passing_bytes(std::int64_t rows, const parallel::CallBytes& call) const override;
  std::optional<AttentionCall> attention_call() const override;

 private:
  class Pass;
  bool is_softmax() const;
  attention::Scoring scoring() const;
  std::int64_t lse_bytes(std::int64_t rows) const;

  const AttentionShape shape_;
  const std::size_t mask_;
  const Branch branch_;
  const ProjectionNames qkv_, o_;
  const std::string q_norm_, k_norm_, sinks_;  // names of parameters
};

}  // namespace longhaul::models
