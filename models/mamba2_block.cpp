#include "models/mamba2_block.h"

#include <utility>

#include "attention/gates.h"
#include "attention/time_step.h"
#include "models/parameter_adder.h"
#include "models/views.h"
#include "runtime/ops/gated_norm.h"
#include "runtime/ops/matmul.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

namespace {

/// The parts of what the convolution gives.
struct Parts {
  TensorView x, b, c;  // T[n,H,E], T[n,G,D] twice
};

}  // namespace

/// As a recurrence: k = B, q = C, v = dt x.
class Mamba2Block::Mixing final : public Mixer {
 public:
  Mixing(const Mamba2Block& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        dtype_(shape_.branch.dtype),
        store_(context.resources.store),
        compute_(context.resources.compute) {}

  Tensor project(ConstTensorView normed) override {
    const Weights weights(store_, block_.group());
    const ConstTensorView weight = weights.working(block_.in_).value;
    rows_ = normed.size(0);
    std::int64_t row = 0;
    const auto next = [&](std::int64_t columns, DType dtype) {
      Tensor product = tensor(columns, dtype);
      ops::matmul(normed, ops::transposed(weight.slice(0, row, row + columns)), product,
                  Write::overwrite, compute_);
      row += columns;
      return product;
    };
    z_ = next(inner_width(), dtype_);
    Tensor mixed = next(inner_width() + 2 * states(), dtype_);
    dt_ = next(shape_.heads, DType::float32);
    return mixed;
  }

  RecurrenceInputs inputs(const TensorView& mixed) const override {
    const Parts parts = parts_of(mixed);
    const Weights weights(store_, block_.group());
    RecurrenceInputs in;
    in.log_decay = tensor(shape_.heads, DType::float32);
    in.time_step = tensor(shape_.heads, DType::float32);
    in.v = Tensor(parts.x.sizes(), dtype_, compute_);
    attention::decay_gate(gate(), by_head(dt_), parameters(weights), by_head(in.log_decay),
                          by_head(in.time_step), compute_);
    attention::scale_by_step(parts.x, in.time_step, in.v, compute_);
    in.views = {parts.c, parts.b, in.v, in.log_decay, {}};
    return in;
  }

  void add_to(const TensorView& out, const TensorView& mixed) const override {
    const Weights weights(store_, block_.group());
    attention::add_skip(parts_of(mixed).x, weights.value(block_.d_).value, out, compute_);
  }

  Tensor inner(const TensorView& out) const override {
    const Weights weights(store_, block_.group());
    Tensor normed = tensor(inner_width(), dtype_);
    ops::gated_norm(norm(), as_rows(out), z_, weights.value(block_.gated_norm_).value, normed,
                    compute_);
    return normed;
  }

  Tensor inner_backward(const TensorView& out, const Tensor& dinner) override {
    const Weights weights(store_, block_.group());
    const Weight weight = weights.value(block_.gated_norm_);
    Tensor dout(out.sizes(), dtype_, compute_), dz = tensor(inner_width(), dtype_);
    ops::gated_norm_backward(norm(), {as_rows(out), z_, weight.value, dinner}, as_rows(dout), dz,
                             weight.gradient(compute_), compute_);
    z_ = std::move(dz);
    return dout;
  }

  Tensor inputs_backward(const TensorView& mixed, const RecurrenceInputs& in, const Tensor& dout,
                         const RecurrenceGradients& gradients) override {
    const Parts parts = parts_of(mixed);
    Tensor dmixed(mixed.sizes(), dtype_, compute_);
    const Parts to = parts_of(dmixed);
    const Weights weights(store_, block_.group());
    const Weight skip = weights.value(block_.d_);
    const Tensor dstep = tensor(shape_.heads, DType::float32);
    attention::time_step_backward({parts.x, in.time_step, skip.value, gradients.v, dout}, to.x,
                                  dstep, skip.gradient(compute_), compute_);
    runtime::copy(gradients.k, to.b, compute_);
    runtime::copy(gradients.q, to.c, compute_);
    Tensor ddt = tensor(shape_.heads, dtype_);
    attention::decay_gate_backward(
        gate(), by_head(dt_), parameters(weights), by_head(gradients.log_decay), by_head(dstep),
        {by_head(ddt), weights.value(block_.a_log_).gradient(compute_),
         weights.value(block_.dt_bias_).gradient(compute_).reshape({shape_.heads, 1})},
        compute_);
    dt_ = std::move(ddt);
    return dmixed;
  }

  void project_backward(Tensor dmixed, ConstTensorView normed, TensorView dnormed) override {
    const Weights weights(store_, block_.group());
    const Weight weight = weights.working(block_.in_);
    const Tensor together = tensor(weight.value.size(0), dtype_);
    std::int64_t column = 0;
    for (Tensor* const part : {&z_, &dmixed, &dt_}) {
      runtime::copy(*part, together.view().slice(1, column, column + part->size(1)), compute_);
      column += part->size(1);
      *part = Tensor();
    }
    weight.add_product(ops::transposed(together), normed, compute_);
    ops::matmul(together, weight.value, dnormed, Write::overwrite, compute_);
  }

 private:
  std::int64_t inner_width() const { return shape_.heads * shape_.head_dim; }
  std::int64_t states() const { return shape_.groups * shape_.state_dim; }
  ops::GatedNorm norm() const {
    return {
        .gate_first = true, .group = inner_width() / shape_.groups, .eps = shape_.branch.norm_eps};
  }
  attention::DecayGate gate() const {
    return {.min_step = shape_.min_step, .max_step = shape_.max_step};
  }
  attention::DecayParameters parameters(const Weights& weights) const {
    return {weights.value(block_.a_log_).value,
            weights.value(block_.dt_bias_).value.reshape({shape_.heads, 1})};
  }
  /// [n,H] -> [n,H,1].
  TensorView by_head(const TensorView& scalars) const {
    return scalars.reshape({rows_, shape_.heads, 1});
  }
  Tensor tensor(std::int64_t columns, DType dtype) const {
    return Tensor({rows_, columns}, dtype, compute_);
  }
  Parts parts_of(const TensorView& mixed) const {
    const std::int64_t inner = inner_width();
    return {heads_of(mixed, 0, shape_.heads, shape_.head_dim),
            heads_of(mixed, inner, shape_.groups, shape_.state_dim),
            heads_of(mixed, inner + states(), shape_.groups, shape_.state_dim)};
  }

  const Mamba2Block& block_;
  const Mamba2Shape& shape_;
  const DType dtype_;  // T
  ParameterStore& store_;
  const runtime::Stream& compute_;
  std::int64_t rows_ = 0;
  Tensor z_;   // T[n,H*E], in backward its gradient
  Tensor dt_;  // fp32[n,H], in backward its gradient, T
};

Mamba2Block::Mamba2Block(const Mamba2Shape& shape, std::size_t mask, const BlockNames& names,
                         int group, double stddev, double residual_stddev,
                         parallel::ParameterTable& table)
    : RecurrentBlock({.branch = shape.branch,
                      .recurrence = attention::recurrence_of_kind("scalar"),
                      .heads = shape.heads,
                      .key_heads = shape.groups,
                      .dim = shape.state_dim,
                      .value_dim = shape.head_dim,
                      .channels = shape.heads * shape.head_dim + 2 * shape.groups * shape.state_dim,
                      .inner = shape.heads * shape.head_dim},
                     mask, names.norm, group, table),
      shape_(shape) {
  using enum parallel::Initialisation;
  const std::int64_t h = shape.branch.hidden, heads = shape.heads, inner = heads * shape.head_dim,
                     channels = inner + 2 * shape.groups * shape.state_dim;
  ParameterAdder add(table, names.prefix, group, stddev);
  in_ = add.matrix("in_proj.weight", inner + channels + heads, h);
  const std::string taps = add.taps("conv1d.weight", channels, shape.conv_width);
  convolve(shape.conv_width,
           {taps, taps, shape.conv_bias ? add.other("conv1d.bias", {channels}, zeros) : ""});
  dt_bias_ = add.other("dt_bias", {heads}, log_uniform_step, 1e-3, 0.1);
  a_log_ = add.other("A_log", {heads}, log_of_uniform, 1, 16);
  d_ = add.other("D", {heads}, ones);
  gated_norm_ = add.other("norm.weight", {inner}, ones);
  project_with(add.output_matrix("out_proj.weight", h, inner, residual_stddev));
}

std::unique_ptr<Mixer> Mamba2Block::mixer(const PassContext& context) const {
  return std::make_unique<Mixing>(*this, context);
}

MixerBytes Mamba2Block::mixer_bytes() const {
  const std::int64_t element = size_bytes(shape_.branch.dtype), wide = size_bytes(DType::float32);
  const std::int64_t heads = shape_.heads, inner = heads * shape_.head_dim,
                     states = shape_.groups * shape_.state_dim;
  return {.kept = inner * element + heads * wide,
          .inputs = inner * element + 2 * heads * wide,
          .inner_backward = inner * element + shape_.groups * wide,
          .inputs_backward = heads * (element + wide),
          .project_backward = (2 * inner + 2 * states + heads) * element};
}

double Mamba2Block::weights() const {
  return static_cast<double>(shape_.branch.hidden) *
         static_cast<double>(3 * shape_.heads * shape_.head_dim +
                             2 * shape_.groups * shape_.state_dim + shape_.heads);
}

}  // namespace longhaul::models
