#include "models/attention_block.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "attention/block.h"
#include "models/weights.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/rope.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using ops::Write;
using runtime::ConstTensorView;
using runtime::DType;
using runtime::Tensor;
using runtime::TensorView;

namespace {

/// [n,H,D] -> [n,H*D].
TensorView as_rows(const TensorView& view) {
  return view.reshape({view.size(0), view.size(1) * view.size(2)});
}

/// y = x W^T: T[n,in] -> T[n,out].
void project(ConstTensorView x, const Weight& weight, TensorView y, const runtime::Stream& stream) {
  ops::matmul(x, ops::transposed(weight.value), y, Write::overwrite, stream);
}

/// The fp32 tensor itself, or its copy in the activation dtype.
Tensor in_activation_dtype(Tensor values, DType dtype, const runtime::Stream& stream) {
  if (values.dtype() == dtype) return values;
  Tensor rounded(values.view().sizes(), dtype, stream);
  ops::cast(values, rounded, stream);
  return rounded;
}

}  // namespace

/// Before the call: norm, projections, rotation. After it: projection and residual. The normalised
/// rows are not kept: backward redoes that cheap operation, bit for bit.
class AttentionBlock::Pass final : public BlockPass {
 public:
  Pass(const AttentionBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        context_(context),
        store_(context.resources.store),
        compute_(context.resources.compute),
        batch_(*context.batch.attention.at(block.mask_)),
        scoring_(block.scoring()) {}

  Stages activate(Tensor input) override {
    input_ = std::move(input);
    before();
    Tensor out({rows(), shape_.heads, shape_.head_dim}, DType::float32, compute_);
    lse_ = Tensor({rows(), shape_.heads, 2}, DType::float32, compute_);
    const auto call = context_.resources.attention.forward(batch_, q_, k_, v_, scoring_, out, lse_);
    call->start();
    co_await in_flight;
    call->advance();
    co_await in_flight;
    call->finish();
    attended_ = in_activation_dtype(std::move(out), shape_.dtype, compute_);
  }

  Tensor output() const override {
    const Weights weights(store_, block_.group());
    Tensor out({rows(), shape_.hidden}, shape_.dtype, compute_);
    project(as_rows(attended_), weights.working(block_.o_), out, compute_);
    ops::add(input_, out, out, compute_);
    return out;
  }

  Stages backward(TensorView dx) override {
    Tensor dout({rows(), shape_.heads, shape_.head_dim}, shape_.dtype, compute_);
    backward_after(dx, dout);

    Tensor dq({rows(), shape_.heads, shape_.head_dim}, DType::float32, compute_);
    Tensor dk({rows(), shape_.kv_heads, shape_.head_dim}, DType::float32, compute_);
    Tensor dv({rows(), shape_.kv_heads, shape_.head_dim}, DType::float32, compute_);
    {
      const Tensor delta({rows(), shape_.heads}, DType::float32, compute_);
      attention::block_delta(attended_, dout, delta, compute_);
      const auto call = context_.resources.attention.backward(
          batch_, {q_, k_, v_, dout, lse_, delta}, scoring_, dq, dk, dv);
      call->start();
      co_await in_flight;
      call->advance();
      co_await in_flight;
      call->finish();
    }
    dout = Tensor();
    backward_before(std::move(dq), std::move(dk), std::move(dv), dx);
  }

 private:
  std::int64_t rows() const { return input_.size(0); }

  /// q, k and v of the input.
  void before() {
    const Weights weights(store_, block_.group());
    const Tensor normed({rows(), shape_.hidden}, shape_.dtype, compute_);
    inv_rms_ = Tensor({rows()}, DType::float32, compute_);
    ops::rms_norm(input_, weights.value(block_.norm_).value, shape_.norm_eps, normed, inv_rms_,
                  compute_);
    q_ = Tensor({rows(), shape_.heads, shape_.head_dim}, shape_.dtype, compute_);
    k_ = Tensor({rows(), shape_.kv_heads, shape_.head_dim}, shape_.dtype, compute_);
    v_ = Tensor({rows(), shape_.kv_heads, shape_.head_dim}, shape_.dtype, compute_);
    project(normed, weights.working(block_.q_), as_rows(q_), compute_);
    project(normed, weights.working(block_.k_), as_rows(k_), compute_);
    project(normed, weights.working(block_.v_), as_rows(v_), compute_);
    rotate(q_, ops::Rotation::forward);
    rotate(k_, ops::Rotation::forward);
  }

  void rotate(TensorView heads, ops::Rotation rotation) const {
    ops::rope(heads, context_.rope.cosines, context_.rope.sines, rotation, compute_);
  }

  /// dout from dx, through the output projection. The residual path's gradient stays in dx.
  void backward_after(ConstTensorView dx, TensorView dout) const {
    const Weights weights(store_, block_.group());
    const Weight o = weights.working(block_.o_);
    o.add_product(ops::transposed(dx), as_rows(attended_), compute_);
    ops::matmul(dx, o.value, as_rows(dout), Write::overwrite, compute_);
  }

  /// Into dx, through rotation, projections and norm.
  void backward_before(Tensor dq, Tensor dk, Tensor dv, TensorView dx) const {
    rotate(dq, ops::Rotation::inverse);
    rotate(dk, ops::Rotation::inverse);
    dq = in_activation_dtype(std::move(dq), shape_.dtype, compute_);
    dk = in_activation_dtype(std::move(dk), shape_.dtype, compute_);
    dv = in_activation_dtype(std::move(dv), shape_.dtype, compute_);

    const Weights weights(store_, block_.group());
    const Weight norm = weights.value(block_.norm_);
    const Tensor normed({rows(), shape_.hidden}, shape_.dtype, compute_);
    ops::rms_norm_apply(input_, norm.value, inv_rms_, normed, compute_);
    const Tensor dnormed({rows(), shape_.hidden}, DType::float32, compute_);
    Write write = Write::overwrite;
    for (const auto& [gradient, name] :
         {std::pair{&dq, &block_.q_}, std::pair{&dk, &block_.k_}, std::pair{&dv, &block_.v_}}) {
      const Weight weight = weights.working(*name);
      const TensorView values = as_rows(*gradient);
      weight.add_product(ops::transposed(values), normed, compute_);
      ops::matmul(values, weight.value, dnormed, write, compute_);
      write = Write::add;
    }
    ops::rms_norm_backward({input_, norm.value, inv_rms_, dnormed}, dx, Write::add,
                           norm.gradient(compute_), compute_);
  }

  const AttentionBlock& block_;
  const AttentionShape& shape_;
  const PassContext& context_;
  ParameterStore& store_;
  const runtime::Stream& compute_;
  const parallel::AttentionBatch& batch_;
  const attention::Scoring scoring_;
  Tensor inv_rms_;    // fp32[n]
  Tensor q_, k_, v_;  // T[n,H,D], T[n,H_kv,D] twice; q and k rotated
  Tensor attended_;   // T[n,H,D], attention's out
  Tensor lse_;        // fp32[n,H,2]
};

AttentionBlock::AttentionBlock(const AttentionShape& shape, std::size_t mask,
                               const std::string& prefix, int group, double stddev,
                               double residual_stddev, parallel::ParameterTable& table)
    : Block(group),
      shape_(shape),
      mask_(mask),
      norm_(prefix + "input_layernorm.weight"),
      q_(prefix + "self_attn.q_proj.weight"),
      k_(prefix + "self_attn.k_proj.weight"),
      v_(prefix + "self_attn.v_proj.weight"),
      o_(prefix + "self_attn.o_proj.weight") {
  const std::int64_t h = shape.hidden, queries = shape.heads * shape.head_dim,
                     keys = shape.kv_heads * shape.head_dim;
  using enum parallel::Initialisation;
  table.add({norm_, {h}, ones, 0, false, -1, group, {}});
  table.add({q_, {queries, h}, normal, stddev, true, 0, group, {}});
  table.add({k_, {keys, h}, normal, stddev, true, 0, group, {}});
  table.add({v_, {keys, h}, normal, stddev, true, 0, group, {}});
  table.add({o_, {h, queries}, normal, residual_stddev, true, 1, group, {}});
}

std::unique_ptr<BlockPass> AttentionBlock::begin(const PassContext& context) const {
  return std::make_unique<Pass>(*this, context);
}

attention::Scoring AttentionBlock::scoring() const {
  return {.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim)))};
}

void AttentionBlock::prepare(
    const parallel::Attention& attention, const parallel::Expression& scheme,
    std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks) const {
  const AttentionCall call = *attention_call();
  attention.prepare(*masks[mask_], scheme, call.shapes, call.scoring);
}

std::optional<AttentionCall> AttentionBlock::attention_call() const {
  return AttentionCall{mask_,
                       {static_cast<int>(shape_.heads), static_cast<int>(shape_.kv_heads),
                        shape_.head_dim, shape_.head_dim, shape_.dtype},
                       scoring()};
}

/// Forward: out in fp32 beside the call. Backward: dout in T, dq, dk, dv and delta in fp32 beside
/// the call; then gradients in T beside their fp32 ones, the normalised rows and their gradient.
PassingBytes AttentionBlock::passing_bytes(std::int64_t rows,
                                           std::span<const parallel::CallBytes> calls) const {
  const std::int64_t element = size_bytes(shape_.dtype), wide = size_bytes(DType::float32);
  const std::int64_t queries = rows * shape_.heads * shape_.head_dim,
                     keys = rows * shape_.kv_heads * shape_.head_dim, hidden = rows * shape_.hidden;
  const std::int64_t gradients = (queries + 2 * keys) * wide,
                     rounded = shape_.dtype == DType::float32 ? gradients
                                                              : (queries + 2 * keys) * element;
  PassingBytes bytes;
  bytes.forward = std::max(queries * wide + calls[mask_].forward, hidden * element);
  bytes.exchange =
      std::max(queries * wide + calls[mask_].forward,
               queries * element + gradients + rows * shape_.heads * wide + calls[mask_].backward);
  bytes.backward = std::max(bytes.exchange, rounded + hidden * (element + wide));
  return bytes;
}

/// Input, q, k, v and the attention's out in T; in fp32 the LSE (two numbers) and a number a row.
std::int64_t AttentionBlock::kept_bytes(std::int64_t rows) const {
  const std::int64_t heads = 2 * shape_.heads + 2 * shape_.kv_heads;
  return rows * ((shape_.hidden + heads * shape_.head_dim) * size_bytes(shape_.dtype) +
                 (2 * shape_.heads + 1) * size_bytes(DType::float32));
}

/// Matrices: 6 per weight and token. Attention: Q K^T and P V forward (2 * 2), their four products
/// backward (4 * 2), D each per head and pair.
double AttentionBlock::flops(std::int64_t tokens, std::span<const std::int64_t> areas) const {
  const auto queries = static_cast<double>(shape_.heads * shape_.head_dim),
             keys = static_cast<double>(shape_.kv_heads * shape_.head_dim);
  const double weights = static_cast<double>(shape_.hidden) * (2 * queries + 2 * keys);
  return 6 * static_cast<double>(tokens) * weights +
         12 * static_cast<double>(areas[mask_]) * queries;
}

}  // namespace longhaul::models
