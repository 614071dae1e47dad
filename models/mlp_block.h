#pragma once
// The feed-forward layer as a block: norm, its matrices and activation, residual.

#include <string>
#include <vector>

#include "models/block.h"
#include "models/branch.h"
#include "models/projection.h"

namespace longhaul::models {

enum class Activation : unsigned char {
  swiglu,       ///< silu(gate) * up
  geglu,        ///< gelu(gate) * up with tanh's approximation of gelu (Shazeer 2020; Gemma)
  squared_relu  ///< max(up, 0)^2: no gate
};

/// Defaults are Llama's.
struct MlpShape {
  BranchShape branch = {};
  std::int64_t intermediate = 0;
  Activation activation = Activation::swiglu;
  bool bias = false;  ///< of every matrix, ".bias" in the place of its ".weight"
};

/// Of parameters. `gate` and `up` [intermediate, hidden] may be one, [2 intermediate, hidden], the
/// gate's rows first, under one name; without a gate there is but `up`.
struct MlpNames {
  std::string norm, gate, up, down, norm_after = {};
};

class MlpBlock final : public Block {
 public:
  /// Adds its parameters to the table. `residual_stddev`: of the initial `down`, `stddev` of the
  /// other matrices.
  MlpBlock(const MlpShape& shape, const MlpNames& names, int group, double stddev,
           double residual_stddev, parallel::ParameterTable& table);

  std::unique_ptr<BlockPass> begin(const PassContext& context) const override;
  double flops(std::int64_t tokens, std::span<const std::int64_t> areas) const override;
  std::int64_t kept_bytes(std::int64_t rows) const override;
  PassingBytes passing_bytes(std::int64_t rows, const parallel::CallBytes& call) const override;

 private:
  class Pass;
  /// Rows of the matrices that stand before the activation, a multiple of `intermediate`.
  std::int64_t inner() const;
  std::vector<ProjectionMatrix> matrices_before(const MlpNames& names) const;

  const MlpShape shape_;
  const Branch branch_;
  const ProjectionNames before_, down_;  // the activation, and behind it
};

}  // namespace longhaul::models
