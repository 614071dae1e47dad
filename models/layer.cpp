#include "models/layer.h"

#include <cmath>
#include <utility>

#include "attention/block.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/rope.h"
#include "runtime/ops/swiglu.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

namespace {

/// [n,H,D] or [n,h] -> [n, everything else].
template <class View>
View as_rows(const View& view) {
  std::int64_t columns = 1;
  for (int dim = 1; dim < view.dims(); ++dim) columns *= view.size(dim);
  return view.reshape({view.size(0), columns});
}

/// The fp32 tensor itself, or its copy in the activation dtype.
Tensor in_activation_dtype(Tensor values, DType dtype, const runtime::Stream& stream) {
  if (values.dtype() == dtype) return values;
  Tensor rounded(values.view().sizes(), dtype, stream);
  ops::cast(values, rounded, stream);
  return rounded;
}

}  // namespace

void LayerActivations::keep_input_only() {
  LayerActivations kept;
  kept.input = std::move(input);
  *this = std::move(kept);
}

Layer::Layer(const LlamaConfig& config, const ParameterStore& store, std::int64_t index,
             parallel::Attention& attention, const runtime::Stream& compute)
    : config_(config),
      index_(index),
      attention_(attention),
      compute_(compute),
      input_norm_(norm_weight(store, "input_layernorm.weight")),
      q_(weight(store, "self_attn.q_proj.weight")),
      k_(weight(store, "self_attn.k_proj.weight")),
      v_(weight(store, "self_attn.v_proj.weight")),
      o_(weight(store, "self_attn.o_proj.weight")),
      residual_norm_(norm_weight(store, "post_attention_layernorm.weight")),
      gate_(weight(store, "mlp.gate_proj.weight")),
      up_(weight(store, "mlp.up_proj.weight")),
      down_(weight(store, "mlp.down_proj.weight")) {}

Layer::Weight Layer::norm_weight(const ParameterStore& store, const std::string& suffix) const {
  const std::string name = layer_name(index_, suffix);
  return {store.value(name), store.gradient(name)};
}

Layer::Weight Layer::weight(const ParameterStore& store, const std::string& suffix) const {
  const std::string name = layer_name(index_, suffix);
  return {store.working(name), store.gradient(name)};
}

Tensor Layer::activation(std::int64_t rows, std::int64_t columns) const {
  return Tensor({rows, columns}, config_.dtype, compute_);
}

void Layer::project(ConstTensorView x, const Weight& weight, TensorView y) const {
  ops::matmul(x, ops::transposed(weight.value), y, Write::overwrite, compute_);
}

void Layer::compute_activations(LayerActivations& a, const RopeTables& rope) const {
  const std::int64_t n = a.input.size(0), h = config_.hidden_size, f = config_.intermediate_size;
  const std::int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  const DType dtype = config_.dtype;

  Tensor normed = activation(n, h);
  a.input_inv_rms = Tensor({n}, DType::float32, compute_);
  ops::rms_norm(a.input, input_norm_.value, config_.rms_norm_eps, normed, a.input_inv_rms,
                compute_);
  a.q = Tensor({n, heads, config_.head_dim}, dtype, compute_);
  a.k = Tensor({n, kv_heads, config_.head_dim}, dtype, compute_);
  a.v = Tensor({n, kv_heads, config_.head_dim}, dtype, compute_);
  project(normed, q_, as_rows(a.q.view()));
  project(normed, k_, as_rows(a.k.view()));
  project(normed, v_, as_rows(a.v.view()));
  ops::rope(a.q, rope.cosines, rope.sines, ops::Rotation::forward, compute_);
  ops::rope(a.k, rope.cosines, rope.sines, ops::Rotation::forward, compute_);

  attend(a);

  a.residual = activation(n, h);
  project(as_rows(a.attended.view()), o_, a.residual);
  ops::add(a.input, a.residual, a.residual, compute_);
  a.residual_inv_rms = Tensor({n}, DType::float32, compute_);
  ops::rms_norm(a.residual, residual_norm_.value, config_.rms_norm_eps, normed, a.residual_inv_rms,
                compute_);
  a.gate = activation(n, f);
  a.up = activation(n, f);
  project(normed, gate_, a.gate);
  project(normed, up_, a.up);
}

void Layer::attend(LayerActivations& a) const {
  const std::int64_t n = a.q.size(0), heads = config_.num_attention_heads;
  Tensor out({n, heads, config_.head_dim}, DType::float32, compute_);
  a.lse = Tensor({n, heads}, DType::float32, compute_);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
  const auto call = attention_.forward(a.q, a.k, a.v, {.scale = scale}, out, a.lse);
  call->start();
  call->advance();
  call->finish();
  a.attended = in_activation_dtype(std::move(out), config_.dtype, compute_);
}

Tensor Layer::output(const LayerActivations& a) const {
  const std::int64_t n = a.residual.size(0);
  const Tensor gated = activation(n, config_.intermediate_size);
  ops::swiglu(a.gate, a.up, gated, compute_);
  Tensor out = activation(n, config_.hidden_size);
  project(gated, down_, out);
  ops::add(a.residual, out, out, compute_);
  return out;
}

void Layer::backward(const LayerActivations& a, const RopeTables& rope, TensorView dx) const {
  backward_mlp(a, dx);
  backward_attention(a, rope, dx);
}

void Layer::backward_mlp(const LayerActivations& a, TensorView dx) const {
  const std::int64_t n = dx.size(0), h = config_.hidden_size, f = config_.intermediate_size;
  Tensor dgated = activation(n, f);
  {
    const Tensor gated = activation(n, f);
    ops::swiglu(a.gate, a.up, gated, compute_);
    ops::matmul(ops::transposed(dx), gated, down_.gradient, Write::add, compute_);
    ops::matmul(dx, down_.value, dgated, Write::overwrite, compute_);
  }
  const Tensor dgate = activation(n, f), dup = activation(n, f);
  ops::swiglu_backward(a.gate, a.up, dgated, dgate, dup, compute_);
  dgated = Tensor();

  const Tensor normed = activation(n, h);
  ops::rms_norm_apply(a.residual, residual_norm_.value, a.residual_inv_rms, normed, compute_);
  ops::matmul(ops::transposed(dgate), normed, gate_.gradient, Write::add, compute_);
  ops::matmul(ops::transposed(dup), normed, up_.gradient, Write::add, compute_);
  const Tensor dnormed({n, h}, DType::float32, compute_);
  ops::matmul(dgate, gate_.value, dnormed, Write::overwrite, compute_);
  ops::matmul(dup, up_.value, dnormed, Write::add, compute_);
  // The residual path's gradient is already in dx.
  ops::rms_norm_backward({a.residual, residual_norm_.value, a.residual_inv_rms, dnormed}, dx,
                         Write::add, residual_norm_.gradient, compute_);
}

void Layer::backward_attention(const LayerActivations& a, const RopeTables& rope,
                               TensorView dx) const {
  const std::int64_t n = dx.size(0), h = config_.hidden_size, dim = config_.head_dim;
  const std::int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  Tensor dout({n, heads, dim}, config_.dtype, compute_);
  ops::matmul(ops::transposed(dx), as_rows(a.attended.view()), o_.gradient, Write::add, compute_);
  ops::matmul(dx, o_.value, as_rows(dout.view()), Write::overwrite, compute_);

  Tensor dq({n, heads, dim}, DType::float32, compute_);
  Tensor dk({n, kv_heads, dim}, DType::float32, compute_);
  Tensor dv({n, kv_heads, dim}, DType::float32, compute_);
  {
    const Tensor delta({n, heads}, DType::float32, compute_);
    attention::block_delta(a.attended, dout, delta, compute_);
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    const auto call =
        attention_.backward({a.q, a.k, a.v, dout, a.lse, delta}, {.scale = scale}, dq, dk, dv);
    call->start();
    call->advance();
    call->finish();
  }
  dout = Tensor();
  ops::rope(dq, rope.cosines, rope.sines, ops::Rotation::inverse, compute_);
  ops::rope(dk, rope.cosines, rope.sines, ops::Rotation::inverse, compute_);
  dq = in_activation_dtype(std::move(dq), config_.dtype, compute_);
  dk = in_activation_dtype(std::move(dk), config_.dtype, compute_);
  dv = in_activation_dtype(std::move(dv), config_.dtype, compute_);

  const Tensor normed = activation(n, h);
  ops::rms_norm_apply(a.input, input_norm_.value, a.input_inv_rms, normed, compute_);
  const Tensor dnormed({n, h}, DType::float32, compute_);
  Write write = Write::overwrite;
  for (const auto& [gradient, weight] :
       {std::pair{&dq, &q_}, std::pair{&dk, &k_}, std::pair{&dv, &v_}}) {
    const TensorView rows = as_rows(gradient->view());
    ops::matmul(ops::transposed(rows), normed, weight->gradient, Write::add, compute_);
    ops::matmul(rows, weight->value, dnormed, write, compute_);
    write = Write::add;
  }
  ops::rms_norm_backward({a.input, input_norm_.value, a.input_inv_rms, dnormed}, dx, Write::add,
                         input_norm_.gradient, compute_);
}

}  // namespace longhaul::models
