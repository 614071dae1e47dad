#include "models/lightning_block.h"

#include <cmath>
#include <utility>
#include <vector>

#include "models/parameter_adder.h"
#include "models/views.h"
#include "runtime/ops/feature_map.h"
#include "runtime/ops/gated_norm.h"
#include "runtime/ops/host_copy.h"
#include "runtime/ops/matmul.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

namespace {

std::vector<float> log_decays(const LightningShape& shape) {
  const auto layer = static_cast<double>(shape.layer), last = static_cast<double>(shape.layers - 1);
  const double of_layer = 1 - layer / (last + 1e-5) + 1e-5;
  std::vector<float> decays;
  for (std::int64_t head = 1; head <= shape.heads; ++head) {
    const double slope =
        std::exp2(-8 * static_cast<double>(head) / static_cast<double>(shape.heads));
    decays.push_back(static_cast<float>(-slope * of_layer));
  }
  return decays;
}

}  // namespace

class LightningBlock::Mixing final : public Mixer {
 public:
  Mixing(const LightningBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        dtype_(shape_.branch.dtype),
        store_(context.resources.store),
        compute_(context.resources.compute) {}

  Tensor project(ConstTensorView normed) override {
    const Weights weights(store_, block_.group());
    rows_ = normed.size(0);
    Tensor qkv = tensor(3 * width());
    gate_ = tensor(width());
    ops::matmul(normed, ops::transposed(weights.working(block_.qkv_).value), qkv, Write::overwrite,
                compute_);
    ops::matmul(normed, ops::transposed(weights.working(block_.gate_).value), gate_,
                Write::overwrite, compute_);
    return qkv;
  }

  RecurrenceInputs inputs(const TensorView& qkv) const override {
    RecurrenceInputs in;
    in.q = tensor(3 * width());  // with k and v
    ops::feature_map(ops::FeatureMap::silu, all(qkv), all(in.q), compute_);
    in.log_decay = Tensor({1, shape_.heads}, DType::float32, compute_);
    ops::upload(log_decays(shape_), in.log_decay, compute_);
    in.views = {part_of(in.q, 0), part_of(in.q, 1), part_of(in.q, 2), in.log_decay, {}};
    return in;
  }

  Tensor inner(const TensorView& out) const override {
    const Weights weights(store_, block_.group());
    Tensor normed = tensor(width());
    ops::gated_norm(norm(), as_rows(out), gate_, weights.value(block_.output_norm_).value, normed,
                    compute_);
    return normed;
  }

  Tensor inner_backward(const TensorView& out, const Tensor& dinner) override {
    const Weights weights(store_, block_.group());
    const Weight weight = weights.value(block_.output_norm_);
    Tensor dout(out.sizes(), dtype_, compute_), dgate = tensor(width());
    ops::gated_norm_backward(norm(), {as_rows(out), gate_, weight.value, dinner}, as_rows(dout),
                             dgate, weight.gradient(compute_), compute_);
    gate_ = std::move(dgate);
    return dout;
  }

  Tensor inputs_backward(const TensorView& qkv, const RecurrenceInputs&, const Tensor&,
                         const RecurrenceGradients& gradients) override {
    Tensor dqkv(qkv.sizes(), dtype_, compute_);
    const auto through = [&](std::int64_t part, const Tensor& gradient) {
      ops::feature_map_backward(ops::FeatureMap::silu, part_of(qkv, part), gradient,
                                part_of(dqkv, part), compute_);
    };
    through(0, gradients.q);
    through(1, gradients.k);
    through(2, gradients.v);
    return dqkv;
  }

  void project_backward(Tensor dqkv, ConstTensorView normed, TensorView dnormed) override {
    const Weights weights(store_, block_.group());
    const Weight qkv = weights.working(block_.qkv_), gate = weights.working(block_.gate_);
    qkv.add_product(ops::transposed(dqkv), normed, compute_);
    ops::matmul(dqkv, qkv.value, dnormed, Write::overwrite, compute_);
    gate.add_product(ops::transposed(gate_), normed, compute_);
    ops::matmul(gate_, gate.value, dnormed, Write::add, compute_);
  }

 private:
  std::int64_t width() const { return shape_.heads * shape_.head_dim; }
  /// Of all heads together.
  ops::GatedNorm norm() const {
    return {.activation = ops::GateActivation::sigmoid,
            .group = width(),
            .eps = shape_.output_norm_eps};
  }
  Tensor tensor(std::int64_t columns) const { return Tensor({rows_, columns}, dtype_, compute_); }
  TensorView all(const TensorView& qkv) const { return heads_of(qkv, 0, 1, 3 * width()); }
  /// q, k or v: a head's lie one behind the other.
  TensorView part_of(const TensorView& qkv, std::int64_t part) const {
    return heads_of(qkv, part * shape_.head_dim, shape_.heads, shape_.head_dim,
                    3 * shape_.head_dim);
  }

  const LightningBlock& block_;
  const LightningShape& shape_;
  const DType dtype_;  // T
  ParameterStore& store_;
  const runtime::Stream& compute_;
  std::int64_t rows_ = 0;
  Tensor gate_;  // T[n,H*D], in backward its gradient
};

LightningBlock::LightningBlock(const LightningShape& shape, std::size_t mask,
                               const BlockNames& names, int group, double stddev,
                               double residual_stddev, parallel::ParameterTable& table)
    : RecurrentBlock({.branch = shape.branch,
                      .recurrence = attention::recurrence_of_kind("decay"),
                      .heads = shape.heads,
                      .key_heads = shape.heads,
                      .dim = shape.head_dim,
                      .value_dim = shape.head_dim,
                      .channels = 3 * shape.heads * shape.head_dim,
                      .inner = shape.heads * shape.head_dim},
                     mask, names.norm, group, table),
      shape_(shape) {
  const std::int64_t h = shape.branch.hidden, width = shape.heads * shape.head_dim;
  ParameterAdder add(table, names.prefix, group, stddev);
  qkv_ = add.matrix("qkv_proj.weight", 3 * width, h);
  gate_ = add.matrix("output_gate.weight", width, h);
  output_norm_ = add.other("norm.weight", {width}, parallel::Initialisation::ones);
  project_with(add.output_matrix("out_proj.weight", h, width, residual_stddev));
}

std::unique_ptr<Mixer> LightningBlock::mixer(const PassContext& context) const {
  return std::make_unique<Mixing>(*this, context);
}

MixerBytes LightningBlock::mixer_bytes() const {
  const std::int64_t width = shape_.heads * shape_.head_dim * size_bytes(shape_.branch.dtype);
  return {.kept = width, .inputs = 3 * width, .inner_backward = width + size_bytes(DType::float32)};
}

double LightningBlock::weights() const {
  return static_cast<double>(5 * shape_.branch.hidden * shape_.heads * shape_.head_dim);
}

}  // namespace longhaul::models
