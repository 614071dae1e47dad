#include "models/attention_block.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "attention/block.h"
#include "models/weights.h"
#include "runtime/ops/cast.h"
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
    attended_ = rounded(std::move(out));
  }

  Tensor output() const override {
    const Weights weights(store_, block_.group());
    Tensor out({rows(), shape_.hidden}, shape_.dtype, compute_);
    ops::matmul_add(as_rows(attended_), ops::transposed(weights.working(block_.o_).value), input_,
                    out, compute_);
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
    const Tensor dqkv = before_rotation(std::move(dq), std::move(dk), std::move(dv));
    backward_before(dqkv, dx);
  }

 private:
  std::int64_t rows() const { return input_.size(0); }

  /// q, k and v of the input.
  void before() {
    const Tensor qkv = projected();
    const Parts parts = parts_of(qkv);
    q_ = Tensor(parts.q.sizes(), shape_.dtype, compute_);
    k_ = Tensor(parts.k.sizes(), shape_.dtype, compute_);
    v_ = Tensor(parts.v.sizes(), shape_.dtype, compute_);
    rotate(parts.q, ops::Rotation::forward, q_);
    rotate(parts.k, ops::Rotation::forward, k_);
    copy(parts.v, v_, compute_);
  }

  /// T[n,H+2*H_kv,D]: heads of q, of k, of v.
  Tensor heads_of_all() const {
    return Tensor({rows(), shape_.heads + 2 * shape_.kv_heads, shape_.head_dim}, shape_.dtype,
                  compute_);
  }
  struct Parts {
    TensorView q, k, v;
  };
  Parts parts_of(const TensorView& qkv) const {
    const std::int64_t k = shape_.heads, v = k + shape_.kv_heads;
    return {qkv.slice(1, 0, k), qkv.slice(1, k, v), qkv.slice(1, v, qkv.size(1))};
  }

  /// The projections of the normalised input, not rotated.
  Tensor projected() {
    const Weights weights(store_, block_.group());
    const Tensor normed({rows(), shape_.hidden}, shape_.dtype, compute_);
    inv_rms_ = Tensor({rows()}, DType::float32, compute_);
    ops::rms_norm(input_, weights.value(block_.norm_).value, shape_.norm_eps, normed, inv_rms_,
                  compute_);
    Tensor qkv = heads_of_all();
    ops::matmul(normed, ops::transposed(weights.working(block_.q_, block_.v_).value), as_rows(qkv),
                Write::overwrite, compute_);
    return qkv;
  }

  void rotate(ConstTensorView heads, ops::Rotation rotation, TensorView rotated) const {
    ops::rope(heads, context_.rope.cosines, context_.rope.sines, rotation, rotated, compute_);
  }

  /// The fp32 tensor itself, or its copy in T.
  Tensor rounded(Tensor values) const {
    if (values.dtype() == shape_.dtype) return values;
    Tensor copy(values.view().sizes(), shape_.dtype, compute_);
    ops::cast(values, copy, compute_);
    return copy;
  }

  /// dout from dx, through the output projection. The residual path's gradient stays in dx.
  void backward_after(ConstTensorView dx, TensorView dout) const {
    const Weights weights(store_, block_.group());
    const Weight o = weights.working(block_.o_);
    o.add_product(ops::transposed(dx), as_rows(attended_), compute_);
    ops::matmul(dx, o.value, as_rows(dout), Write::overwrite, compute_);
  }

  /// Gradients of what the projections gave.
  Tensor before_rotation(Tensor dq, Tensor dk, Tensor dv) const {
    Tensor dqkv = heads_of_all();
    const Parts parts = parts_of(dqkv);
    rotate(dq, ops::Rotation::inverse, parts.q);
    rotate(dk, ops::Rotation::inverse, parts.k);
    copy(dv, parts.v, compute_);
    return dqkv;
  }

  /// Into dx, through projections and norm.
  void backward_before(const Tensor& dqkv, TensorView dx) const {
    const Weights weights(store_, block_.group());
    const Weight norm = weights.value(block_.norm_);
    const Tensor normed({rows(), shape_.hidden}, shape_.dtype, compute_);
    ops::rms_norm_apply(input_, norm.value, inv_rms_, normed, compute_);
    const Tensor dnormed({rows(), shape_.hidden}, DType::float32, compute_);
    const Weight qkv = weights.working(block_.q_, block_.v_);
    const TensorView gradients = as_rows(dqkv);
    qkv.add_product(ops::transposed(gradients), normed, compute_);
    ops::matmul(gradients, qkv.value, dnormed, Write::overwrite, compute_);
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
  table.add({q_, {queries, h}, normal, stddev, true, 0, group, {}});  // with k and v one matrix
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

/// Forward: q, k and v twice, where the attention's out is not there yet; its out in fp32 beside
/// the call; the block's output. Backward: dout in T, dq, dk, dv and delta in fp32 beside the call;
/// then those three in T beside their fp32 ones; then the former, the normalised rows and their
/// gradient.
PassingBytes AttentionBlock::passing_bytes(std::int64_t rows,
                                           std::span<const parallel::CallBytes> calls) const {
  const std::int64_t element = size_bytes(shape_.dtype), wide = size_bytes(DType::float32);
  const std::int64_t queries = rows * shape_.heads * shape_.head_dim,
                     keys = rows * shape_.kv_heads * shape_.head_dim, hidden = rows * shape_.hidden;
  const std::int64_t gradients = (queries + 2 * keys) * wide,
                     rounded = (queries + 2 * keys) * element;
  PassingBytes bytes;
  bytes.forward =
      std::max({2 * keys * element, queries * wide + calls[mask_].forward, hidden * element});
  bytes.exchange =
      std::max(queries * wide + calls[mask_].forward,
               queries * element + gradients + rows * shape_.heads * wide + calls[mask_].backward);
  bytes.backward = rounded + std::max(gradients, hidden * (element + wide));
  bytes.backward = std::max(bytes.backward, bytes.exchange);
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
