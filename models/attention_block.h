#pragma once
// x + o(attention(q, k, v)) of the normalised x, q and k rotated: the only caller of attention.

#include <optional>
#include <string>

#include "models/block.h"

namespace longhaul::models {

struct AttentionShape {
  std::int64_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0;
  double norm_eps = 1e-5;
  runtime::DType dtype = runtime::DType::float32;  ///< of activations
};

/// Parameters: "PREFIXinput_layernorm.weight" and "PREFIXself_attn.{q,k,v,o}_proj.weight".
class AttentionBlock final : public Block {
 public:
  /// Adds its parameters to the table. It sees mask number `mask` of a batch. `residual_stddev`: of
  /// the initial o_proj, `stddev` of the other matrices.
  AttentionBlock(const AttentionShape& shape, std::size_t mask, const std::string& prefix,
                 int group, double stddev, double residual_stddev, parallel::ParameterTable& table);

  std::unique_ptr<BlockPass> begin(const PassContext& context) const override;
  void prepare(
      const parallel::Attention& attention, const parallel::Expression& scheme,
      std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks) const override;
  double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const override;
  std::int64_t kept_bytes(std::int64_t rows) const override;
  PassingBytes passing_bytes(std::int64_t rows,
                             std::span<const parallel::CallBytes> calls) const override;
  std::optional<AttentionCall> attention_call() const override;

 private:
  class Pass;
  attention::Scoring scoring() const;

  const AttentionShape shape_;
  const std::size_t mask_;
  const std::string norm_, q_, k_, v_, o_;  // names of parameters
};

}  // namespace longhaul::models
