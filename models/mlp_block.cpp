#include "models/mlp_block.h"

#include <algorithm>
#include <utility>

#include "models/weights.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/swiglu.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

/// The normalised rows and the swiglu output are not kept: backward redoes those cheap operations,
/// bit for bit.
class MlpBlock::Pass final : public BlockPass {
 public:
  Pass(const MlpBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        store_(context.resources.store),
        compute_(context.resources.compute) {}

  Stages activate(Tensor input) override {
    input_ = std::move(input);
    const Weights weights(store_, block_.group());
    const Tensor normed = activation(shape_.hidden);
    inv_rms_ = Tensor({rows()}, DType::float32, compute_);
    ops::rms_norm(input_, weights.value(block_.norm_).value, shape_.norm_eps, normed, inv_rms_,
                  compute_);
    gate_up_ = activation(2 * shape_.intermediate);
    ops::matmul(normed, ops::transposed(weights.working(block_.gate_, block_.up_).value), gate_up_,
                Write::overwrite, compute_);
    co_return;
  }

  Tensor output() const override {
    const Weights weights(store_, block_.group());
    const Tensor gated = activation(shape_.intermediate);
    ops::swiglu(gate_up_, gated, compute_);
    Tensor out = activation(shape_.hidden);
    ops::matmul_add(gated, ops::transposed(weights.working(block_.down_).value), input_, out,
                    compute_);
    return out;
  }

  Stages backward(TensorView dx) override {
    const Weights weights(store_, block_.group());
    const Weight norm = weights.value(block_.norm_), down = weights.working(block_.down_),
                 gate_up = weights.working(block_.gate_, block_.up_);
    Tensor dgated = activation(shape_.intermediate);
    ops::matmul(dx, down.value, dgated, Write::overwrite, compute_);
    ops::swiglu_backward(gate_up_, dgated, compute_);
    const Tensor dgate_up = std::move(gate_up_);  // what the operation left in their place
    {
      const Tensor gated = std::move(dgated);
      down.add_product(ops::transposed(dx), gated, compute_);
    }

    const Tensor normed = activation(shape_.hidden);
    ops::rms_norm_apply(input_, norm.value, inv_rms_, normed, compute_);
    gate_up.add_product(ops::transposed(dgate_up), normed, compute_);
    const Tensor dnormed({rows(), shape_.hidden}, DType::float32, compute_);
    ops::matmul(dgate_up, gate_up.value, dnormed, Write::overwrite, compute_);
    // The residual path's gradient is already in dx.
    ops::rms_norm_backward({input_, norm.value, inv_rms_, dnormed}, dx, Write::add,
                           norm.gradient(compute_), compute_);
    co_return;
  }

 private:
  std::int64_t rows() const { return input_.size(0); }
  Tensor activation(std::int64_t columns) const {
    return Tensor({rows(), columns}, shape_.dtype, compute_);
  }

  const MlpBlock& block_;
  const MlpShape& shape_;
  ParameterStore& store_;
  const runtime::Stream& compute_;
  Tensor inv_rms_;  // fp32[n]
  Tensor gate_up_;  // T[n,2f], a row's gates before its ups
};

MlpBlock::MlpBlock(const MlpShape& shape, const std::string& prefix, int group, double stddev,
                   double residual_stddev, parallel::ParameterTable& table)
    : Block(group),
      shape_(shape),
      norm_(prefix + "post_attention_layernorm.weight"),
      gate_(prefix + "mlp.gate_proj.weight"),
      up_(prefix + "mlp.up_proj.weight"),
      down_(prefix + "mlp.down_proj.weight") {
  const std::int64_t h = shape.hidden, f = shape.intermediate;
  using enum parallel::Initialisation;
  table.add({norm_, {h}, ones, 0, false, -1, group, {}});
  table.add({gate_, {f, h}, normal, stddev, true, 0, group, {}});  // before up: one matrix
  table.add({up_, {f, h}, normal, stddev, true, 0, group, {}});
  table.add({down_, {h, f}, normal, residual_stddev, true, 1, group, {}});
}

std::unique_ptr<BlockPass> MlpBlock::begin(const PassContext& context) const {
  return std::make_unique<Pass>(*this, context);
}

/// Input, gates and ups in T; in fp32 a number a row.
std::int64_t MlpBlock::kept_bytes(std::int64_t rows) const {
  return rows * ((shape_.hidden + 2 * shape_.intermediate) * size_bytes(shape_.dtype) +
                 size_bytes(DType::float32));
}

/// Forward: the swiglu output beside the block's. Backward: that one or its gradient, whose other
/// gradients take the place of what is kept; then the normalised rows and, in fp32, their gradient.
PassingBytes MlpBlock::passing_bytes(std::int64_t rows,
                                     std::span<const parallel::CallBytes>) const {
  const std::int64_t element = size_bytes(shape_.dtype), wide = size_bytes(DType::float32);
  const std::int64_t hidden = rows * shape_.hidden, inner = rows * shape_.intermediate;
  return {.forward = (hidden + inner) * element,
          .backward = std::max(inner * element, hidden * (element + wide))};
}

double MlpBlock::flops(std::int64_t tokens, std::span<const std::int64_t>) const {
  return 6 * static_cast<double>(tokens) *
         (3 * static_cast<double>(shape_.hidden) * static_cast<double>(shape_.intermediate));
}

}  // namespace longhaul::models
