#pragma once
// x + down(swiglu(gate(norm(x)), up(norm(x)))).

#include <string>

#include "models/block.h"

namespace longhaul::models {

struct MlpShape {
  std::int64_t hidden = 0, intermediate = 0;
  double norm_eps = 1e-5;
  runtime::DType dtype = runtime::DType::float32;  ///< of activations
};

/// Parameters: "PREFIXpost_attention_layernorm.weight" and "PREFIXmlp.{gate,up,down}_proj.weight".
class MlpBlock final : public Block {
 public:
  /// Adds its parameters to the table. `residual_stddev`: of the initial down_proj, `stddev` of the
  /// other matrices.
  MlpBlock(const MlpShape& shape, const std::string& prefix, int group, double stddev,
           double residual_stddev, parallel::ParameterTable& table);

  std::unique_ptr<BlockPass> begin(const PassContext& context) const override;
  double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const override;
  std::int64_t kept_bytes(std::int64_t rows) const override;
  PassingBytes passing_bytes(std::int64_t rows,
                             std::span<const parallel::CallBytes> calls) const override;

 private:
  class Pass;

  const MlpShape shape_;
  const std::string norm_, gate_, up_, down_;  // names of parameters
};

}  // namespace longhaul::models
