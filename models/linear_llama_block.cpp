#include "models/linear_llama_block.h"

#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "attention/gates.h"
#include "attention/normaliser.h"
#include "models/parameter_adder.h"
#include "models/views.h"
#include "runtime/ops/cast.h"
#include "runtime/ops/gated_norm.h"
#include "runtime/ops/host_copy.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/rope.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;
using enum LinearLlamaKind;

namespace {

constexpr std::array<const char*, 4> kKinds = {"basic", "decay", "simple_gla", "gla"};
constexpr std::int64_t kBottleneck = 16;  // of GLA's decays

attention::Recurrence recurrence_of(const LinearLlamaShape& shape) {
  switch (shape.kind) {
    case basic:
      return scaled_recurrence("linear", shape.head_dim);
    case decay:
      return scaled_recurrence("decay", shape.head_dim);
    case simple_gla:
      return scaled_recurrence("scalar", shape.head_dim);
    case gla:
      break;
  }
  return scaled_recurrence("vector", shape.head_dim);
}

/// RetNet's: log(1 - 2^(-5-h)).
std::vector<float> log_decays(std::int64_t heads) {
  std::vector<float> decays;
  for (std::int64_t head = 0; head < heads; ++head)
    decays.push_back(static_cast<float>(std::log1p(-std::exp2(-5 - static_cast<double>(head)))));
  return decays;
}

/// Numbers a head of the learned decays.
std::int64_t decay_width(const LinearLlamaShape& shape) {
  if (shape.kind == gla) return shape.head_dim;
  return shape.kind == simple_gla ? 1 : 0;
}

}  // namespace

std::span<const char* const> linear_llama_kinds() { return kKinds; }

LinearLlamaKind linear_llama_kind_of(const std::string& name) {
  std::string all;
  for (std::size_t i = 0; i < kKinds.size(); ++i) {
    if (name == kKinds[i]) return static_cast<LinearLlamaKind>(i);
    all += runtime::concat(all.empty() ? "" : ", ", kKinds[i]);
  }
  runtime::fail(runtime::ExitCode::config, "there is no linear attention '", name,
                "' of a Linear-Llama3; take one of ", all);
}

class LinearLlamaBlock::Mixing final : public Mixer {
 public:
  Mixing(const LinearLlamaBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        dtype_(shape_.branch.dtype),
        rope_(context.rope(0)),
        store_(context.resources.store),
        compute_(context.resources.compute) {}

  Tensor project(ConstTensorView normed) override {
    const Weights weights(store_, block_.group());
    rows_ = normed.size(0);
    const auto product = [&](const Weight& weight, const Tensor& to) {
      ops::matmul(normed, ops::transposed(weight.value), to, Write::overwrite, compute_);
    };
    Tensor qkv = tensor(3 * width(), dtype_);
    product(weights.working(block_.q_, block_.v_), qkv);
    if (gated()) {
      gate_ = tensor(width(), dtype_);
      product(weights.working(block_.gate_), gate_);
    }
    if (shape_.kind == simple_gla) {
      decay_ = tensor(shape_.heads, DType::float32);
      product(weights.working(block_.decay_), decay_);
    } else if (shape_.kind == gla) {
      decay_ = tensor(kBottleneck, dtype_);
      product(weights.working(block_.decay_low_), decay_);
    }
    return qkv;
  }

  RecurrenceInputs inputs(const TensorView& qkv) const override {
    RecurrenceInputs in;
    in.q = mapped(part_of(qkv, 0));
    in.k = mapped(part_of(qkv, 1));
    in.views = {in.q, in.k, part_of(qkv, 2), {}, {}};
    if (shape_.normalize) {
      in.v = Tensor({rows_, shape_.heads, shape_.head_dim + 1}, dtype_, compute_);
      attention::append_ones(part_of(qkv, 2), in.v, compute_);
      in.views.v = in.v;
    }
    if (shape_.kind == decay) {
      in.log_decay = Tensor({1, shape_.heads}, DType::float32, compute_);
      ops::upload(log_decays(shape_.heads), in.log_decay, compute_);
    } else if (learned()) {
      const Weights weights(store_, block_.group());
      in.log_decay = tensor(shape_.heads * decay_width(shape_), DType::float32);
      const Tensor own = gate_input(weights);
      attention::decay_gate(kGate, by_head(own.empty() ? decay_ : own), parameters(weights),
                            by_head(in.log_decay), {}, compute_);
    }
    in.views.log_decay = in.log_decay;
    if (shape_.kind == gla) in.views.log_decay = by_head(in.log_decay);
    return in;
  }

  Tensor inner(const TensorView& out) const override {
    Tensor result = tensor(width(), dtype_);
    if (shape_.normalize) {
      const Tensor quotients({rows_, shape_.heads, shape_.head_dim}, DType::float32, compute_);
      attention::normalise(out, quotients, compute_);
      runtime::copy(as_rows(quotients), result, compute_);
      return result;
    }
    const Weights weights(store_, block_.group());
    ops::gated_norm(norm(), as_rows(out), gate(), weights.value(block_.head_norm_).value, result,
                    compute_);
    return result;
  }

  Tensor inner_backward(const TensorView& out, const Tensor& dinner) override {
    Tensor dout(out.sizes(), dtype_, compute_);
    if (shape_.normalize) {
      attention::normalise_backward(
          out, dinner.view().reshape({rows_, shape_.heads, shape_.head_dim}), dout, compute_);
      return dout;
    }
    const Weights weights(store_, block_.group());
    const Weight weight = weights.value(block_.head_norm_);
    Tensor dgate = gated() ? tensor(width(), dtype_) : Tensor();
    ops::gated_norm_backward(norm(), {as_rows(out), gate(), weight.value, dinner}, as_rows(dout),
                             dgate.view(), weight.gradient(compute_), compute_);
    gate_ = std::move(dgate);
    return dout;
  }

  Tensor inputs_backward(const TensorView& qkv, const RecurrenceInputs&, const Tensor&,
                         const RecurrenceGradients& gradients) override {
    Tensor dqkv(qkv.sizes(), dtype_, compute_);
    map_backward(part_of(qkv, 0), gradients.q, part_of(dqkv, 0));
    map_backward(part_of(qkv, 1), gradients.k, part_of(dqkv, 1));
    // With a normaliser the last column is the ones'.
    runtime::copy(gradients.v.view().slice(2, 0, shape_.head_dim), part_of(dqkv, 2), compute_);
    if (learned()) decays_backward(gradients.log_decay);
    return dqkv;
  }

  void project_backward(Tensor dqkv, ConstTensorView normed, TensorView dnormed) override {
    const Weights weights(store_, block_.group());
    const auto through = [&](const Weight& weight, const Tensor& gradient, Write write) {
      weight.add_product(ops::transposed(gradient), normed, compute_);
      ops::matmul(gradient, weight.value, dnormed, write, compute_);
    };
    through(weights.working(block_.q_, block_.v_), dqkv, Write::overwrite);
    if (gated()) through(weights.working(block_.gate_), gate_, Write::add);
    if (learned())
      through(weights.working(shape_.kind == gla ? block_.decay_low_ : block_.decay_), decay_,
              Write::add);
  }

 private:
  static constexpr attention::DecayGate kGate{.form = attention::DecayForm::log_sigmoid};

  std::int64_t width() const { return shape_.heads * shape_.head_dim; }
  bool gated() const { return shape_.kind != basic; }
  bool learned() const { return decay_width(shape_) > 0; }
  ConstTensorView gate() const { return gated() ? ConstTensorView(gate_) : ConstTensorView(); }
  ops::GatedNorm norm() const {
    return {.activation = gated() ? ops::GateActivation::silu : ops::GateActivation::none,
            .group = shape_.head_dim,
            .eps = shape_.branch.norm_eps};
  }
  attention::DecayParameters parameters(const Weights& weights) const {
    return {{},
            weights.value(block_.decay_bias_).value.reshape({shape_.heads, decay_width(shape_)})};
  }
  Tensor tensor(std::int64_t columns, DType dtype) const {
    return Tensor({rows_, columns}, dtype, compute_);
  }
  TensorView part_of(const TensorView& qkv, std::int64_t part) const {
    return heads_of(qkv, part * width(), shape_.heads, shape_.head_dim);
  }
  TensorView by_head(const TensorView& decays) const {
    return decays.reshape({rows_, shape_.heads, decay_width(shape_)});
  }

  /// q or k as the recurrence takes it.
  Tensor mapped(const TensorView& heads) const {
    Tensor result(heads.sizes(), dtype_, compute_);
    ops::feature_map(shape_.feature_map, heads, result, compute_);
    if (shape_.kind == decay)
      ops::rope(result, rope_.cosines, rope_.sines, ops::Rotation::forward, result, compute_);
    return result;
  }
  /// `gradient` fp32 is overwritten.
  void map_backward(const TensorView& heads, const Tensor& gradient, const TensorView& to) const {
    if (shape_.kind == decay)
      ops::rope(gradient, rope_.cosines, rope_.sines, ops::Rotation::inverse, gradient, compute_);
    ops::feature_map_backward(shape_.feature_map, heads, gradient, to, compute_);
  }

  /// What the decay's gate takes, T[n,H*D], where it is not kept; else empty.
  Tensor gate_input(const Weights& weights) const {
    if (shape_.kind != gla) return {};
    Tensor wide = tensor(width(), dtype_);
    ops::matmul(decay_, ops::transposed(weights.working(block_.decay_).value), wide,
                Write::overwrite, compute_);
    return wide;
  }
  void decays_backward(const Tensor& dlog_decay) {
    const Weights weights(store_, block_.group());
    const Tensor own = gate_input(weights);
    Tensor dx = tensor(shape_.heads * decay_width(shape_), dtype_);
    const TensorView dbias = weights.value(block_.decay_bias_).gradient(compute_);
    attention::decay_gate_backward(
        kGate, by_head(own.empty() ? decay_ : own), parameters(weights), by_head(dlog_decay), {},
        {by_head(dx), {}, dbias.reshape({shape_.heads, decay_width(shape_)})}, compute_);
    if (shape_.kind == gla) {
      const Weight wide = weights.working(block_.decay_);
      wide.add_product(ops::transposed(dx), decay_, compute_);
      Tensor dnarrow = tensor(kBottleneck, dtype_);
      ops::matmul(dx, wide.value, dnarrow, Write::overwrite, compute_);
      dx = std::move(dnarrow);
    }
    decay_ = std::move(dx);
  }

  const LinearLlamaBlock& block_;
  const LinearLlamaShape& shape_;
  const DType dtype_;  // T
  const RopeTables& rope_;
  ParameterStore& store_;
  const runtime::Stream& compute_;
  std::int64_t rows_ = 0;
  Tensor gate_;   // T[n,H*D], but for kind basic; in backward its gradient
  Tensor decay_;  // simple_gla: fp32[n,H]; gla: T[n,16]; in backward its gradient, T
};

LinearLlamaBlock::LinearLlamaBlock(const LinearLlamaShape& shape, std::size_t mask,
                                   const BlockNames& names, int group, double stddev,
                                   double residual_stddev, parallel::ParameterTable& table)
    : RecurrentBlock({.branch = shape.branch,
                      .recurrence = recurrence_of(shape),
                      .heads = shape.heads,
                      .key_heads = shape.heads,
                      .dim = shape.head_dim,
                      .value_dim = shape.head_dim + (shape.normalize ? 1 : 0),
                      .channels = 3 * shape.heads * shape.head_dim,
                      .inner = shape.heads * shape.head_dim},
                     mask, names.norm, group, table),
      shape_(shape) {
  using enum parallel::Initialisation;
  if (shape.normalize && shape.kind != basic)
    runtime::fail(runtime::ExitCode::config,
                  "a normaliser divides linear attention of kind basic; kind ",
                  kKinds[static_cast<std::size_t>(shape.kind)], " norms its heads");
  const std::int64_t h = shape.branch.hidden, width = shape.heads * shape.head_dim;
  ParameterAdder add(table, names.prefix, group, stddev);
  q_ = add.matrix("q_proj.weight", width, h);  // with k and v one matrix
  add.matrix("k_proj.weight", width, h);
  v_ = add.matrix("v_proj.weight", width, h);
  if (shape.kind == simple_gla) {
    decay_ = add.matrix("gk_proj.weight", shape.heads, h);
    decay_bias_ = add.other("gk_proj.bias", {shape.heads}, zeros);
  } else if (shape.kind == gla) {
    decay_low_ = add.matrix("gk_proj.0.weight", kBottleneck, h);
    decay_ = add.matrix("gk_proj.1.weight", width, kBottleneck);
    decay_bias_ = add.other("gk_proj.1.bias", {width}, zeros);
  }
  if (shape.kind != basic) gate_ = add.matrix("g_proj.weight", width, h);
  if (!shape.normalize) head_norm_ = add.other("g_norm.weight", {shape.head_dim}, ones);
  project_with(add.output_matrix("o_proj.weight", h, width, residual_stddev));
}

std::unique_ptr<Mixer> LinearLlamaBlock::mixer(const PassContext& context) const {
  return std::make_unique<Mixing>(*this, context);
}

MixerBytes LinearLlamaBlock::mixer_bytes() const {
  const std::int64_t element = size_bytes(shape_.branch.dtype), wide = size_bytes(DType::float32);
  const std::int64_t heads = shape_.heads, width = heads * shape_.head_dim,
                     gate = shape_.kind == basic ? 0 : width * element,
                     decays = heads * decay_width(shape_);
  const bool low = shape_.kind == gla;
  MixerBytes bytes{.kept = gate + (low ? kBottleneck * element : decays * wide),
                   .inputs = 2 * width * element + decays * wide,
                   .inputs_forming = low ? width * element : 0,
                   .inner_backward = gate + heads * wide,
                   .inputs_backward = (low ? 2 * width + kBottleneck : decays) * element};
  if (shape_.normalize) {
    bytes.inputs += (width + heads) * element;
    bytes.inner_forming = width * wide;
    bytes.inner_backward = 0;
  }
  return bytes;
}

double LinearLlamaBlock::weights() const {
  const std::int64_t h = shape_.branch.hidden, width = shape_.heads * shape_.head_dim;
  std::int64_t elements = (shape_.kind == basic ? 4 : 5) * width * h;
  if (shape_.kind == simple_gla) elements += shape_.heads * h;
  if (shape_.kind == gla) elements += kBottleneck * (h + width);
  return static_cast<double>(elements);
}

}  // namespace longhaul::models
