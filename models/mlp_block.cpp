#include "models/mlp_block.h"

#include <algorithm>
#include <utility>

#include "models/weights.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/squared_relu.h"
#include "runtime/ops/swiglu.h"

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
    const Tensor normed = block_.branch_.normed(resources_, input_, inv_rms_);
    inner_ = activation(block_.inner());
    ops::matmul(normed, ops::transposed(weights.working(block_.first_, block_.last_).value), inner_,
                Write::overwrite, compute_);
    co_return;
  }

  Tensor output() const override {
    const Weights weights(resources_.store, block_.group());
    const Tensor activated = activation(shape_.intermediate);
    if (gates()) {
      ops::swiglu(inner_, activated, compute_);
    } else {
      ops::squared_relu(inner_, activated, compute_);
    }
    return block_.branch_.output(resources_, input_, inv_rms_, activated,
                                 weights.working(block_.down_));
  }

  Stages backward(TensorView dx) override {
    const Weights weights(resources_.store, block_.group());
    const Weight down = weights.working(block_.down_),
                 before = weights.working(block_.first_, block_.last_);
    {
      Tensor own;
      const ConstTensorView dbranch = block_.branch_.gradient(resources_, dx, own);
      const Tensor activated = activation(shape_.intermediate);  // its gradient first
      ops::matmul(dbranch, down.value, activated, Write::overwrite, compute_);
      if (gates()) {
        ops::swiglu_backward(inner_, activated, compute_);
      } else {
        ops::squared_relu_backward(inner_, activated, compute_);
      }
      down.add_product(ops::transposed(dbranch), activated, compute_);
    }
    const Tensor dinner = std::move(inner_);  // what the operation left in their place

    const Tensor normed = block_.branch_.normed_again(resources_, input_, inv_rms_);
    before.add_product(ops::transposed(dinner), normed, compute_);
    const Tensor dnormed({rows(), shape_.branch.hidden}, DType::float32, compute_);
    ops::matmul(dinner, before.value, dnormed, Write::overwrite, compute_);
    block_.branch_.backward(resources_, input_, inv_rms_, dnormed, dx);
    co_return;
  }

 private:
  std::int64_t rows() const { return input_.size(0); }
  bool gates() const { return shape_.activation == Activation::swiglu; }
  Tensor activation(std::int64_t columns) const {
    return Tensor({rows(), columns}, shape_.branch.dtype, compute_);
  }

  const MlpBlock& block_;
  const MlpShape& shape_;
  const Resources& resources_;
  const runtime::Stream& compute_;
  Tensor inv_rms_;  // fp32[n]
  Tensor inner_;    // T[n,2f], a row's gates before its ups; T[n,f] without gates
};

MlpBlock::MlpBlock(const MlpShape& shape, const MlpNames& names, int group, double stddev,
                   double residual_stddev, parallel::ParameterTable& table)
    : Block(group),
      shape_(shape),
      branch_(shape.branch, names.norm, group, table),
      first_(shape.activation == Activation::swiglu ? names.gate : names.up),
      last_(names.up),
      down_(names.down) {
  const std::int64_t h = shape.branch.hidden, f = shape.intermediate;
  using enum parallel::Initialisation;
  if (first_ != last_) {
    table.add({first_, {f, h}, normal, stddev, true, 0, group, {}});  // before up: one matrix
    table.add({last_, {f, h}, normal, stddev, true, 0, group, {}});
  } else {
    table.add({last_, {inner(), h}, normal, stddev, true, 0, group, {}});
  }
  table.add({down_, {h, f}, normal, residual_stddev, true, 1, group, {}});
}

std::int64_t MlpBlock::inner() const {
  return shape_.activation == Activation::swiglu ? 2 * shape_.intermediate : shape_.intermediate;
}

std::unique_ptr<BlockPass> MlpBlock::begin(const PassContext& context) const {
  return std::make_unique<Pass>(*this, context);
}

/// What the branch keeps; what the activation takes, in T.
std::int64_t MlpBlock::kept_bytes(std::int64_t rows) const {
  return branch_.kept_bytes(rows) + rows * inner() * size_bytes(shape_.branch.dtype);
}

/// Forward: the activation's output beside the block's. Backward: that one or its gradient, whose
/// other gradients take the place of what is kept, beside the branch's; then the normalised rows
/// and, in fp32, their gradient.
PassingBytes MlpBlock::passing_bytes(std::int64_t rows, const parallel::CallBytes&) const {
  const std::int64_t activated = rows * shape_.intermediate * size_bytes(shape_.branch.dtype);
  return {
      .forward = activated + branch_.output_bytes(rows),
      .backward = std::max(activated + branch_.gradient_bytes(rows), branch_.backward_bytes(rows))};
}

double MlpBlock::flops(std::int64_t tokens, std::span<const std::int64_t>) const {
  return 6 * static_cast<double>(tokens) *
         (static_cast<double>(shape_.branch.hidden) *
          static_cast<double>(inner() + shape_.intermediate));
}

}  // namespace longhaul::models
