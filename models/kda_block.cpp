#include "models/kda_block.h"

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

/// Of the low-rank projections of decays and output gates only the narrow side is kept.
class KdaBlock::Mixing final : public Mixer {
 public:
  Mixing(const KdaBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        dtype_(shape_.branch.dtype),
        store_(context.resources.store),
        compute_(context.resources.compute) {}

  Tensor project(ConstTensorView normed) override {
    const Weights weights(store_, block_.group());
    rows_ = normed.size(0);
    Tensor mixed = tensor(3 * width(), dtype_);
    b_ = tensor(shape_.heads, DType::float32);
    f_ = tensor(shape_.head_dim, dtype_);
    g_ = tensor(shape_.head_dim, dtype_);
    multiply(normed, weights.working(block_.q_, block_.v_), mixed);
    multiply(normed, weights.working(block_.b_), b_);
    multiply(normed, weights.working(block_.f_a_), f_);
    multiply(normed, weights.working(block_.g_a_), g_);
    return mixed;
  }

  RecurrenceInputs inputs(const TensorView& mixed) const override {
    RecurrenceInputs in;
    in.q = Tensor({rows_, shape_.heads, shape_.head_dim}, dtype_, compute_);
    in.k = Tensor({rows_, shape_.heads, shape_.head_dim}, dtype_, compute_);
    ops::l2_norm(part_of(mixed, 0), ops::kL2NormEps, in.q, compute_);
    ops::l2_norm(part_of(mixed, 1), ops::kL2NormEps, in.k, compute_);
    in.log_decay = Tensor({rows_, shape_.heads, shape_.head_dim}, DType::float32, compute_);
    in.beta = tensor(shape_.heads, DType::float32);
    const Weights weights(store_, block_.group());
    const Tensor x = widened(f_, weights.working(block_.f_b_));
    attention::decay_gate(gate(), by_head(x), parameters(weights), in.log_decay, {}, compute_);
    attention::beta_gate(b_, 1, in.beta, compute_);
    in.views = {in.q, in.k, part_of(mixed, 2), in.log_decay, in.beta};
    return in;
  }

  Tensor inner(const TensorView& out) const override {
    const Weights weights(store_, block_.group());
    const Tensor z = widened(g_, weights.working(block_.g_b_));
    Tensor normed = tensor(width(), dtype_);
    ops::gated_norm(norm(), as_rows(out), z, weights.value(block_.o_norm_).value, normed, compute_);
    return normed;
  }

  Tensor inner_backward(const TensorView& out, const Tensor& dinner) override {
    const Weights weights(store_, block_.group());
    const Weight weight = weights.value(block_.o_norm_), wide = weights.working(block_.g_b_);
    const Tensor z = widened(g_, wide), dz = tensor(width(), dtype_);
    Tensor dout(out.sizes(), dtype_, compute_);
    ops::gated_norm_backward(norm(), {as_rows(out), z, weight.value, dinner}, as_rows(dout), dz,
                             weight.gradient(compute_), compute_);
    g_ = narrowed(dz, g_, wide);
    return dout;
  }

  Tensor inputs_backward(const TensorView& mixed, const RecurrenceInputs&, const Tensor&,
                         const RecurrenceGradients& gradients) override {
    Tensor dmixed(mixed.sizes(), dtype_, compute_);
    ops::l2_norm_backward(part_of(mixed, 0), gradients.q, ops::kL2NormEps, part_of(dmixed, 0),
                          compute_);
    ops::l2_norm_backward(part_of(mixed, 1), gradients.k, ops::kL2NormEps, part_of(dmixed, 1),
                          compute_);
    runtime::copy(gradients.v, part_of(dmixed, 2), compute_);
    const Weights weights(store_, block_.group());
    const Weight wide = weights.working(block_.f_b_);
    const Tensor x = widened(f_, wide), dx = tensor(width(), dtype_);
    attention::decay_gate_backward(
        gate(), by_head(x), parameters(weights), gradients.log_decay, {},
        {by_head(dx), rates(weights.value(block_.a_log_).gradient(compute_)),
         steps(weights.value(block_.dt_bias_).gradient(compute_))},
        compute_);
    f_ = narrowed(dx, f_, wide);
    Tensor db = tensor(shape_.heads, dtype_);
    attention::beta_gate_backward(b_, 1, gradients.beta, db, compute_);
    b_ = std::move(db);
    return dmixed;
  }

  void project_backward(Tensor dmixed, ConstTensorView normed, TensorView dnormed) override {
    const Weights weights(store_, block_.group());
    const auto through = [&](const Weight& weight, const Tensor& gradient, Write write) {
      weight.add_product(ops::transposed(gradient), normed, compute_);
      ops::matmul(gradient, weight.value, dnormed, write, compute_);
    };
    through(weights.working(block_.q_, block_.v_), dmixed, Write::overwrite);
    through(weights.working(block_.b_), b_, Write::add);
    through(weights.working(block_.f_a_), f_, Write::add);
    through(weights.working(block_.g_a_), g_, Write::add);
  }

 private:
  std::int64_t width() const { return shape_.heads * shape_.head_dim; }
  ops::GatedNorm norm() const {
    return {.activation = ops::GateActivation::sigmoid,
            .group = shape_.head_dim,
            .eps = shape_.branch.norm_eps};
  }
  attention::DecayGate gate() const {
    if (!shape_.gate_lower_bound) return {};
    return {.form = attention::DecayForm::bounded, .lower_bound = *shape_.gate_lower_bound};
  }
  TensorView rates(const TensorView& a_log) const { return a_log.reshape({shape_.heads}); }
  TensorView steps(const TensorView& bias) const {
    return bias.reshape({shape_.heads, shape_.head_dim});
  }
  attention::DecayParameters parameters(const Weights& weights) const {
    return {weights.value(block_.a_log_).value.reshape({shape_.heads}),
            weights.value(block_.dt_bias_).value.reshape({shape_.heads, shape_.head_dim})};
  }
  Tensor tensor(std::int64_t columns, DType dtype) const {
    return Tensor({rows_, columns}, dtype, compute_);
  }
  /// q, k or v of a row of all three.
  TensorView part_of(const TensorView& mixed, std::int64_t part) const {
    return heads_of(mixed, part * width(), shape_.heads, shape_.head_dim);
  }
  TensorView by_head(const TensorView& rows) const {
    return rows.reshape({rows_, shape_.heads, shape_.head_dim});
  }

  void multiply(ConstTensorView rows, const Weight& weight, const Tensor& product) const {
    ops::matmul(rows, ops::transposed(weight.value), product, Write::overwrite, compute_);
  }
  /// T[n,H*D] from the narrow side of a low-rank projection.
  Tensor widened(const Tensor& narrow, const Weight& weight) const {
    Tensor wide = tensor(width(), dtype_);
    multiply(narrow, weight, wide);
    return wide;
  }
  /// The narrow side's gradient from the wide one's. Adds the weight's.
  Tensor narrowed(const Tensor& dwide, const Tensor& narrow, const Weight& weight) const {
    weight.add_product(ops::transposed(dwide), narrow, compute_);
    Tensor dnarrow = tensor(shape_.head_dim, dtype_);
    ops::matmul(dwide, weight.value, dnarrow, Write::overwrite, compute_);
    return dnarrow;
  }

  const KdaBlock& block_;
  const KdaShape& shape_;
  const DType dtype_;  // T
  ParameterStore& store_;
  const runtime::Stream& compute_;
  std::int64_t rows_ = 0;
  Tensor b_;      // fp32[n,H], in backward its gradient, T
  Tensor f_, g_;  // T[n,D]: the narrow sides of decay and gate, in backward their gradients
};

KdaBlock::KdaBlock(const KdaShape& shape, std::size_t mask, const BlockNames& names, int group,
                   double stddev, double residual_stddev, parallel::ParameterTable& table)
    : RecurrentBlock({.branch = shape.branch,
                      .recurrence = scaled_recurrence("kda", shape.head_dim),
                      .heads = shape.heads,
                      .key_heads = shape.heads,
                      .dim = shape.head_dim,
                      .value_dim = shape.head_dim,
                      .channels = 3 * shape.heads * shape.head_dim,
                      .inner = shape.heads * shape.head_dim},
                     mask, names.norm, group, table),
      shape_(shape) {
  using enum parallel::Initialisation;
  const std::int64_t h = shape.branch.hidden, dim = shape.head_dim, width = shape.heads * dim;
  ParameterAdder add(table, names.prefix, group, stddev);
  q_ = add.matrix("q_proj.weight", width, h);  // with k and v one matrix
  add.matrix("k_proj.weight", width, h);
  v_ = add.matrix("v_proj.weight", width, h);
  const std::string first = add.taps("q_conv1d.weight", width, shape.conv_width);
  add.taps("k_conv1d.weight", width, shape.conv_width);
  convolve(shape.conv_width, {first, add.taps("v_conv1d.weight", width, shape.conv_width), ""});
  a_log_ = shape.gate_lower_bound
               ? add.other("A_log", {1, 1, shape.heads, 1}, zeros)
               : add.other("A_log", {1, 1, shape.heads, 1}, log_of_uniform, 1, 16);
  dt_bias_ = add.other("dt_bias", {width}, log_uniform_step, 1e-3, 0.1);
  f_a_ = add.matrix("f_a_proj.weight", dim, h);
  f_b_ = add.matrix("f_b_proj.weight", width, dim);
  b_ = add.matrix("b_proj.weight", shape.heads, h);
  g_a_ = add.matrix("g_a_proj.weight", dim, h);
  g_b_ = add.matrix("g_b_proj.weight", width, dim);
  o_norm_ = add.other("o_norm.weight", {dim}, ones);
  project_with(add.output_matrix("o_proj.weight", h, width, residual_stddev));
}

std::unique_ptr<Mixer> KdaBlock::mixer(const PassContext& context) const {
  return std::make_unique<Mixing>(*this, context);
}

MixerBytes KdaBlock::mixer_bytes() const {
  const std::int64_t element = size_bytes(shape_.branch.dtype), wide = size_bytes(DType::float32);
  const std::int64_t dim = shape_.head_dim, width = shape_.heads * dim;
  return {.kept = 2 * dim * element + shape_.heads * wide,
          .inputs = 2 * width * element + (width + shape_.heads) * wide,
          .inputs_forming = width * element,
          .inner_forming = width * element,
          .inner_backward = (2 * width + dim) * element + shape_.heads * wide,
          .inputs_backward = (2 * width + dim + shape_.heads) * element};
}

double KdaBlock::weights() const {
  const std::int64_t dim = shape_.head_dim, width = shape_.heads * dim, h = shape_.branch.hidden;
  return static_cast<double>(h * (4 * width + 2 * dim + shape_.heads) + 2 * dim * width);
}

}  // namespace longhaul::models
