#include "models/gated_delta_net_block.h"

#include <utility>

#include "attention/gates.h"
#include "models/parameter_adder.h"
#include "models/views.h"
#include "runtime/ops/gated_norm.h"
#include "runtime/ops/l2_norm.h"
#include "runtime/ops/matmul.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

namespace {

/// Columns of a row by what they hold, as the convolution has them: q, k, v.
struct Columns {
  TensorView q, k, v;
};

}  // namespace

class GatedDeltaNetBlock::Mixing final : public Mixer {
 public:
  Mixing(const GatedDeltaNetBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        dtype_(shape_.branch.dtype),
        store_(context.resources.store),
        compute_(context.resources.compute) {}

  Tensor project(ConstTensorView normed) override {
    const Weights weights(store_, block_.group());
    const auto product = [&](const std::string& name, const Tensor& to) {
      ops::matmul(normed, ops::transposed(weights.working(name).value), to, Write::overwrite,
                  compute_);
    };
    rows_ = normed.size(0);
    Tensor mixed = tensor(keys() * 2 + values(), dtype_);
    z_ = tensor(values(), dtype_);
    b_ = tensor(shape_.value_heads, DType::float32);
    a_ = tensor(shape_.value_heads, DType::float32);
    if (!interleaved()) {
      product(block_.qkv_, mixed);
      product(block_.z_, z_);
      product(block_.b_, b_);
      product(block_.a_, a_);
      return mixed;
    }
    {
      const Tensor qkvz = tensor(2 * (keys() + values()), dtype_);
      product(block_.qkv_, qkvz);
      exchange(qkvz, mixed, z_, Way::apart);
    }
    const Tensor ba = tensor(2 * shape_.value_heads, DType::float32);
    product(block_.b_, ba);
    exchange(ba, b_, a_, Way::apart);
    return mixed;
  }

  RecurrenceInputs inputs(const TensorView& mixed) const override {
    const Columns columns = columns_of(mixed);
    RecurrenceInputs in;
    in.q = Tensor(columns.q.sizes(), dtype_, compute_);
    in.k = Tensor(columns.k.sizes(), dtype_, compute_);
    ops::l2_norm(columns.q, ops::kL2NormEps, in.q, compute_);
    ops::l2_norm(columns.k, ops::kL2NormEps, in.k, compute_);
    in.log_decay = tensor(shape_.value_heads, DType::float32);
    in.beta = tensor(shape_.value_heads, DType::float32);
    const Weights weights(store_, block_.group());
    attention::decay_gate({}, by_head(a_), parameters(weights), by_head(in.log_decay), {},
                          compute_);
    attention::beta_gate(b_, beta_factor(), in.beta, compute_);
    in.views = {in.q, in.k, columns.v, in.log_decay, in.beta};
    return in;
  }

  Tensor inner(const TensorView& out) const override {
    const Weights weights(store_, block_.group());
    Tensor normed = tensor(values(), dtype_);
    ops::gated_norm(norm(), as_rows(out), z_, weights.value(block_.gated_norm_).value, normed,
                    compute_);
    return normed;
  }

  Tensor inner_backward(const TensorView& out, const Tensor& dinner) override {
    const Weights weights(store_, block_.group());
    const Weight weight = weights.value(block_.gated_norm_);
    Tensor dout(out.sizes(), dtype_, compute_);
    Tensor dz = tensor(values(), dtype_);
    ops::gated_norm_backward(norm(), {as_rows(out), z_, weight.value, dinner}, as_rows(dout), dz,
                             weight.gradient(compute_), compute_);
    z_ = std::move(dz);
    return dout;
  }

  Tensor inputs_backward(const TensorView& mixed, const RecurrenceInputs&, const Tensor&,
                         const RecurrenceGradients& gradients) override {
    const Columns columns = columns_of(mixed);
    Tensor dmixed(mixed.sizes(), dtype_, compute_);
    const Columns to = columns_of(dmixed);
    ops::l2_norm_backward(columns.q, gradients.q, ops::kL2NormEps, to.q, compute_);
    ops::l2_norm_backward(columns.k, gradients.k, ops::kL2NormEps, to.k, compute_);
    runtime::copy(gradients.v, to.v, compute_);
    const Weights weights(store_, block_.group());
    Tensor da = tensor(shape_.value_heads, dtype_), db = tensor(shape_.value_heads, dtype_);
    attention::decay_gate_backward({}, by_head(a_), parameters(weights),
                                   by_head(gradients.log_decay), {},
                                   {by_head(da), weights.value(block_.a_log_).gradient(compute_),
                                    bias_of(weights.value(block_.dt_bias_).gradient(compute_))},
                                   compute_);
    attention::beta_gate_backward(b_, beta_factor(), gradients.beta, db, compute_);
    a_ = std::move(da);
    b_ = std::move(db);
    return dmixed;
  }

  void project_backward(Tensor dmixed, ConstTensorView normed, TensorView dnormed) override {
    const Weights weights(store_, block_.group());
    const auto through = [&](const std::string& name, const Tensor& gradient, Write write) {
      const Weight weight = weights.working(name);
      weight.add_product(ops::transposed(gradient), normed, compute_);
      ops::matmul(gradient, weight.value, dnormed, write, compute_);
    };
    if (!interleaved()) {
      through(block_.qkv_, dmixed, Write::overwrite);
      through(block_.z_, z_, Write::add);
      through(block_.b_, b_, Write::add);
      return through(block_.a_, a_, Write::add);
    }
    {
      const Tensor dqkvz = tensor(2 * (keys() + values()), dtype_);
      exchange(dqkvz, dmixed, z_, Way::together);
      dmixed = Tensor();
      through(block_.qkv_, dqkvz, Write::overwrite);
    }
    const Tensor dba = tensor(2 * shape_.value_heads, dtype_);
    exchange(dba, b_, a_, Way::together);
    through(block_.b_, dba, Write::add);
  }

 private:
  enum class Way : unsigned char { apart, together };

  bool interleaved() const { return shape_.projections == GatedDeltaNetProjections::interleaved; }
  std::int64_t keys() const { return shape_.key_heads * shape_.key_head_dim; }
  std::int64_t values() const { return shape_.value_heads * shape_.value_head_dim; }
  double beta_factor() const { return shape_.allow_negative_eigenvalues ? 2 : 1; }
  ops::GatedNorm norm() const {
    return {.group = shape_.value_head_dim, .eps = shape_.branch.norm_eps};
  }
  attention::DecayParameters parameters(const Weights& weights) const {
    return {weights.value(block_.a_log_).value, bias_of(weights.value(block_.dt_bias_).value)};
  }
  /// [n,H] -> [n,H,1].
  TensorView by_head(const TensorView& scalars) const {
    return scalars.reshape({rows_, shape_.value_heads, 1});
  }
  template <class View>
  View bias_of(const View& bias) const {
    return bias.reshape({shape_.value_heads, 1});
  }
  Tensor tensor(std::int64_t columns, DType dtype) const {
    return Tensor({rows_, columns}, dtype, compute_);
  }

  Columns columns_of(const TensorView& mixed) const {
    const std::int64_t heads = shape_.key_heads, dim = shape_.key_head_dim;
    return {heads_of(mixed, 0, heads, dim), heads_of(mixed, keys(), heads, dim),
            heads_of(mixed, 2 * keys(), shape_.value_heads, shape_.value_head_dim)};
  }

  /// Columns of an interleaved projection to `first` and `second`, or back: a key head's columns of
  /// `first` (q, k and values; or beta) one behind the other, then those of `second`.
  void exchange(const TensorView& together, const TensorView& first, const TensorView& second,
                Way way) const {
    const std::int64_t heads = shape_.key_heads, step = together.size(1) / heads;
    std::int64_t column = 0;
    const auto move = [&](const TensorView& rows, std::int64_t begin, std::int64_t width) {
      const TensorView inside = heads_of(together, column, heads, width, step),
                       alone = heads_of(rows, begin, heads, width);
      way == Way::apart ? runtime::copy(inside, alone, compute_)
                        : runtime::copy(alone, inside, compute_);
      column += width;
    };
    if (first.size(1) > second.size(1)) {  // q, k and values beside z
      move(first, 0, shape_.key_head_dim);
      move(first, keys(), shape_.key_head_dim);
      move(first, 2 * keys(), values() / heads);
    } else {
      move(first, 0, first.size(1) / heads);
    }
    move(second, 0, second.size(1) / heads);
  }

  const GatedDeltaNetBlock& block_;
  const GatedDeltaNetShape& shape_;
  const DType dtype_;  // T
  ParameterStore& store_;
  const runtime::Stream& compute_;
  std::int64_t rows_ = 0;
  Tensor z_;      // T[n,H*E], in backward its gradient
  Tensor b_, a_;  // fp32[n,H], in backward their gradients, T
};

GatedDeltaNetBlock::GatedDeltaNetBlock(const GatedDeltaNetShape& shape, std::size_t mask,
                                       const BlockNames& names, int group, double stddev,
                                       double residual_stddev, parallel::ParameterTable& table)
    : RecurrentBlock({.branch = shape.branch,
                      .recurrence = scaled_recurrence("gated_delta", shape.key_head_dim),
                      .heads = shape.value_heads,
                      .key_heads = shape.key_heads,
                      .dim = shape.key_head_dim,
                      .value_dim = shape.value_head_dim,
                      .channels = 2 * shape.key_heads * shape.key_head_dim +
                                  shape.value_heads * shape.value_head_dim,
                      .inner = shape.value_heads * shape.value_head_dim},
                     mask, names.norm, group, table),
      shape_(shape) {
  using enum parallel::Initialisation;
  const std::int64_t h = shape.branch.hidden, heads = shape.value_heads,
                     values = heads * shape.value_head_dim,
                     channels = 2 * shape.key_heads * shape.key_head_dim + values;
  ParameterAdder add(table, names.prefix, group, stddev);
  if (shape.projections == GatedDeltaNetProjections::interleaved) {
    qkv_ = add.matrix("in_proj_qkvz.weight", channels + values, h);
    b_ = add.matrix("in_proj_ba.weight", 2 * heads, h);
  } else {
    qkv_ = add.matrix("in_proj_qkv.weight", channels, h);
    z_ = add.matrix("in_proj_z.weight", values, h);
    b_ = add.matrix("in_proj_b.weight", heads, h);
    a_ = add.matrix("in_proj_a.weight", heads, h);
  }
  const std::string taps = add.taps("conv1d.weight", channels, shape.conv_width);
  convolve(shape.conv_width, {taps, taps, ""});
  a_log_ = add.other("A_log", {heads}, log_of_uniform, 0.01, 16);
  dt_bias_ = add.other("dt_bias", {heads}, ones);
  gated_norm_ = add.other("norm.weight", {shape.value_head_dim}, ones);
  project_with(add.output_matrix("out_proj.weight", h, values, residual_stddev));
}

std::unique_ptr<Mixer> GatedDeltaNetBlock::mixer(const PassContext& context) const {
  return std::make_unique<Mixing>(*this, context);
}

MixerBytes GatedDeltaNetBlock::mixer_bytes() const {
  const std::int64_t element = size_bytes(shape_.branch.dtype), wide = size_bytes(DType::float32);
  const std::int64_t heads = shape_.value_heads, keys = shape_.key_heads * shape_.key_head_dim,
                     values = heads * shape_.value_head_dim;
  const bool interleaved = shape_.projections == GatedDeltaNetProjections::interleaved;
  const std::int64_t together = interleaved ? 2 * (keys + values) * element : 0;
  return {.kept = values * element + 2 * heads * wide,
          .projecting = together,
          .inputs = 2 * keys * element + 2 * heads * wide,
          .inner_backward = values * element + heads * wide,
          .inputs_backward = 2 * heads * element,
          .project_backward = together};
}

double GatedDeltaNetBlock::weights() const {
  return static_cast<double>(shape_.branch.hidden) *
         static_cast<double>(2 * shape_.key_heads * shape_.key_head_dim +
                             shape_.value_heads * (3 * shape_.value_head_dim + 2));
}

}  // namespace longhaul::models
