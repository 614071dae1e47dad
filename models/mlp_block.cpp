#include "models/mlp_block.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "models/weights.h"
#include "runtime/ops/glu.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/squared_relu.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

/// The normalised rows and the activation's output are not kept: backward redoes those cheap
/// operations, bit for bit.
class MlpBlock::Pass final : public BlockPass {
 public:
  Pass(const MlpBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        resources_(context.resources),
        compute_(context.resources.compute) {}

  Stages activate(Tensor input) override {
    input_ = std::move(input);
    const Weights weights(resources_.store, block_.group());
    {
      Tensor own;
      const ConstTensorView normed = block_.branch_.normed(resources_, input_, kept_, own);
      inner_ = activation(block_.inner());
      Projection(weights, block_.before_).apply(normed, inner_, compute_);
    }
    if (block_.branch_.norms_after())
      block_.branch_.project(resources_, activated(), Projection(weights, block_.down_), kept_);
    co_return;
  }

  Tensor output() const override {
    const Weights weights(resources_.store, block_.group());
    if (block_.branch_.norms_after()) return block_.branch_.output(resources_, input_, kept_);
    return block_.branch_.output(resources_, input_, kept_, activated(),
                                 Projection(weights, block_.down_));
  }

  Stages backward(TensorView dx) override {
    const Weights weights(resources_.store, block_.group());
    const Projection down(weights, block_.down_), before(weights, block_.before_);
    {
      Tensor own;
      const ConstTensorView dbranch = block_.branch_.gradient(resources_, dx, kept_, own);
      const Tensor activated = activation(shape_.intermediate);  // its gradient first
      ops::matmul(dbranch, down.weight.value, activated, Write::overwrite, compute_);
      if (const auto kind = glu()) {
        ops::glu_backward(*kind, inner_, activated, compute_);
      } else {
        ops::squared_relu_backward(inner_, activated, compute_);
      }
      down.add_gradients(dbranch, activated, compute_);
    }
    const Tensor dinner = std::move(inner_);  // what the operation left in their place

    Tensor own;
    before.add_gradients(dinner, block_.branch_.normed_again(resources_, input_, kept_, own),
                         compute_);
    const Tensor dnormed({rows(), shape_.branch.hidden}, DType::float32, compute_);
    ops::matmul(dinner, before.weight.value, dnormed, Write::overwrite, compute_);
    block_.branch_.backward(resources_, input_, kept_, dnormed, dx);
    co_return;
  }

 private:
  std::int64_t rows() const { return input_.size(0); }
  /// None: squared_relu, without gates.
  std::optional<ops::Glu> glu() const {
    switch (shape_.activation) {
      case Activation::swiglu:
        return ops::Glu::swiglu;
      case Activation::geglu:
        return ops::Glu::geglu;
      case Activation::squared_relu:
        return std::nullopt;
    }
    return std::nullopt;
  }
  Tensor activation(std::int64_t columns) const {
    return Tensor({rows(), columns}, shape_.branch.dtype, compute_);
  }
  Tensor activated() const {
    Tensor activated = activation(shape_.intermediate);
    if (const auto kind = glu()) {
      ops::glu(*kind, inner_, activated, compute_);
    } else {
      ops::squared_relu(inner_, activated, compute_);
    }
    return activated;
  }

  const MlpBlock& block_;
  const MlpShape& shape_;
  const Resources& resources_;
  const runtime::Stream& compute_;
  BranchKept kept_;
  Tensor inner_;  // T[n,2f], a row's gates before its ups; T[n,f] without gates
};

MlpBlock::MlpBlock(const MlpShape& shape, const MlpNames& names, int group, double stddev,
                   double residual_stddev, parallel::ParameterTable& table)
    : Block(group),
      shape_(shape),
      branch_(shape.branch, names.norm, names.norm_after, group, table),
      before_(add_projection({shape.branch.hidden, shape.bias, stddev, 0, group},
                             matrices_before(names), table)),
      down_(add_projection({shape.intermediate, shape.bias, residual_stddev, 1, group},
                           std::array{ProjectionMatrix{names.down, shape.branch.hidden}}, table)) {}

std::vector<ProjectionMatrix> MlpBlock::matrices_before(const MlpNames& names) const {
  if (inner() == shape_.intermediate || names.gate == names.up) return {{names.up, inner()}};
  return {{names.gate, shape_.intermediate}, {names.up, shape_.intermediate}};
}

std::int64_t MlpBlock::inner() const {
  return shape_.activation == Activation::squared_relu ? shape_.intermediate
                                                       : 2 * shape_.intermediate;
}

std::unique_ptr<BlockPass> MlpBlock::begin(const PassContext& context) const {
  return std::make_unique<Pass>(*this, context);
}

/// What the branch keeps; what the activation takes, in T.
std::int64_t MlpBlock::kept_bytes(std::int64_t rows) const {
  return branch_.kept_bytes(rows) + rows * inner() * size_bytes(shape_.branch.dtype);
}

/// Forward: the activation's output, beside the block's unless a norm stands between. Backward:
/// what makes the branch's gradient; that beside the activation's output or its gradient, whose
/// other gradients take the place of what is kept; then the normalised rows and, in fp32, their
/// gradient.
PassingBytes MlpBlock::passing_bytes(std::int64_t rows, const parallel::CallBytes&) const {
  const std::int64_t activated = rows * shape_.intermediate * size_bytes(shape_.branch.dtype);
  const std::int64_t released = branch_.released_bytes(rows);
  return {.forward = branch_.output_bytes(rows, activated),
          .backward = std::max({branch_.gradient_bytes(rows),
                                activated + branch_.own_bytes(rows) - released,
                                branch_.backward_bytes(rows) - released})};
}

double MlpBlock::flops(std::int64_t tokens, std::span<const std::int64_t>) const {
  return 6 * static_cast<double>(tokens) *
         (static_cast<double>(shape_.branch.hidden) *
          static_cast<double>(inner() + shape_.intermediate));
}

}  // namespace longhaul::models
