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
#include "runtime/ops/sigmoid_gate.h"

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
/// [n,H,D] -> [n*H,D].
TensorView by_head(const TensorView& view) {
  return view.reshape({view.size(0) * view.size(1), view.size(2)});
}
/// [n,2H,D] -> [n,H,D], every second head from `first` on.
TensorView every_second(const TensorView& view, std::int64_t first) {
  const TensorView heads = view.slice(1, first, view.size(1));
  TensorView half;
  half.assign(heads.data(), heads.dtype(), heads.device(), 3,
              {heads.size(0), view.size(1) / 2, heads.size(2)},
              {heads.stride(0), 2 * heads.stride(1), heads.stride(2)});
  return half;
}

}  // namespace

/// Before the call: norm, projections, norm of heads, rotation. After it: gate, projection and
/// residual. The normalised and the gated rows are not kept: backward redoes those cheap
/// operations, bit for bit.
class AttentionBlock::Pass final : public BlockPass {
 public:
  Pass(const AttentionBlock& block, const PassContext& context)
      : block_(block),
        shape_(block.shape_),
        dtype_(block.shape_.branch.dtype),
        context_(context),
        store_(context.resources.store),
        compute_(context.resources.compute),
        batch_(*context.batch.attention.at(block.mask_)),
        scoring_(block.scoring()) {}

  void receive(std::vector<Tensor> received) override {
    again_ = !received.empty();
    if (!again_) return;
    attended_ = std::move(received[0]);
    lse_ = std::move(received[1]);
    kept_.saved = std::move(received[2]);
  }

  Stages activate(Tensor input) override {
    input_ = std::move(input);
    before();
    if (again_) co_return;
    Tensor out({rows(), shape_.heads, shape_.head_dim}, DType::float32, compute_);
    lse_ = Tensor({rows(), shape_.heads, 2}, DType::float32, compute_);
    const auto call =
        context_.resources.attention.forward(batch_, q_, k_, v_, scoring_, out, lse_, &kept_);
    call->start();
    co_await in_flight;
    call->advance();
    co_await in_flight;
    call->finish();
    attended_ = rounded(std::move(out));
  }

  Tensor output() const override {
    const Weights weights(store_, block_.group());
    const Tensor gated = shape_.output_gate ? this->gated() : Tensor();
    return block_.branch_.output(context_.resources, input_, inv_rms_,
                                 as_rows(shape_.output_gate ? gated : attended_),
                                 weights.working(block_.o_));
  }

  std::vector<Tensor> take_received(Recompute recompute) override {
    std::vector<Tensor> received;
    if (recompute != Recompute::selective) return received;
    received.push_back(std::move(attended_));
    received.push_back(std::move(lse_));
    received.push_back(std::move(kept_.saved));
    return received;
  }

  Stages backward(TensorView dx) override {
    Tensor dout({rows(), shape_.heads, shape_.head_dim}, dtype_, compute_);
    backward_after(dx, dout);

    Tensor dq({rows(), shape_.heads, shape_.head_dim}, DType::float32, compute_);
    Tensor dk({rows(), shape_.kv_heads, shape_.head_dim}, DType::float32, compute_);
    Tensor dv({rows(), shape_.kv_heads, shape_.head_dim}, DType::float32, compute_);
    {
      const Tensor delta({rows(), shape_.heads}, DType::float32, compute_);
      attention::block_delta(attended_, dout, delta, compute_);
      const auto call = context_.resources.attention.backward(
          batch_, {q_, k_, v_, dout, lse_, delta, &kept_}, scoring_, dq, dk, dv);
      call->start();
      co_await in_flight;
      call->advance();
      co_await in_flight;
      call->finish();
    }
    dout = Tensor();
    const Tensor projections = before_heads(std::move(dq), std::move(dk), std::move(dv));
    backward_before(projections, dx);
  }

 private:
  /// What the norm of heads keeps of q or k.
  struct Heads {
    Tensor before;   // T[n,H,D]
    Tensor inv_rms;  // fp32[n*H]
  };
  /// Of the projections T[n,.,D], in the order of their rows.
  struct Parts {
    TensorView q, gate, k, v;
  };

  std::int64_t rows() const { return input_.size(0); }

  /// q, k, v and the gate of the input.
  void before() {
    const Tensor projections = projected();
    const Parts parts = parts_of(projections);
    q_ = Tensor(parts.q.sizes(), dtype_, compute_);
    k_ = Tensor(parts.k.sizes(), dtype_, compute_);
    v_ = Tensor(parts.v.sizes(), dtype_, compute_);
    place(parts.q, block_.q_norm_, q_heads_, q_);
    place(parts.k, block_.k_norm_, k_heads_, k_);
    copy(parts.v, v_, compute_);
    if (!shape_.output_gate) return;
    gate_ = Tensor(parts.gate.sizes(), dtype_, compute_);
    copy(parts.gate, gate_, compute_);
  }

  /// T[n,.,D]: heads of q (each before its gate), of k, of v.
  Tensor heads_of_all() const {
    const std::int64_t q = shape_.heads * (shape_.output_gate ? 2 : 1);
    return Tensor({rows(), q + 2 * shape_.kv_heads, shape_.head_dim}, dtype_, compute_);
  }
  Parts parts_of(const TensorView& all) const {
    const std::int64_t v = all.size(1) - shape_.kv_heads, k = v - shape_.kv_heads;
    Parts parts{all.slice(1, 0, k), {}, all.slice(1, k, v), all.slice(1, v, all.size(1))};
    if (!shape_.output_gate) return parts;
    parts.gate = every_second(parts.q, 1);
    parts.q = every_second(parts.q, 0);
    return parts;
  }

  /// The projections of the normalised input.
  Tensor projected() {
    const Weights weights(store_, block_.group());
    const Tensor normed = block_.branch_.normed(context_.resources, input_, inv_rms_);
    Tensor all = heads_of_all();
    ops::matmul(normed, ops::transposed(weights.working(block_.q_, block_.v_).value), as_rows(all),
                Write::overwrite, compute_);
    return all;
  }

  void rotate(ConstTensorView heads, ops::Rotation rotation, TensorView rotated) const {
    const RopeTables& rope = context_.rope(shape_.rope);
    ops::rope(heads, rope.cosines, rope.sines, rotation, rotated, compute_);
  }
  /// Whether q and k are rotated right out of their projection.
  bool rotates_projections() const { return shape_.qk_norm == QkNorm::none && !shape_.output_gate; }

  /// q or k from its projection: normed by head and rotated.
  void place(ConstTensorView projection, const std::string& norm, Heads& kept, TensorView heads) {
    if (rotates_projections()) return rotate(projection, ops::Rotation::forward, heads);
    if (shape_.qk_norm != QkNorm::none) {
      const Weights weights(store_, block_.group());
      kept.before = Tensor(projection.sizes(), dtype_, compute_);
      kept.inv_rms = Tensor({heads.size(0) * heads.size(1)}, DType::float32, compute_);
      copy(projection, kept.before, compute_);
      ops::rms_norm(by_head(kept.before), {weights.value(norm).value, shape_.branch.norm_offset},
                    shape_.branch.norm_eps, by_head(heads), kept.inv_rms, compute_);
    } else {
      copy(projection, heads, compute_);
    }
    rotate(heads, ops::Rotation::forward, heads);
  }
  /// The projection's gradient from that of q or k, fp32[n,H,D], which is overwritten.
  void place_backward(const Tensor& dheads, const std::string& norm, const Heads& kept,
                      TensorView dprojection) const {
    if (rotates_projections()) return rotate(dheads, ops::Rotation::inverse, dprojection);
    rotate(dheads, ops::Rotation::inverse, dheads);
    if (shape_.qk_norm == QkNorm::none) return copy(dheads, dprojection, compute_);
    const Weights weights(store_, block_.group());
    const Weight weight = weights.value(norm);
    const Tensor before(dheads.view().sizes(), dtype_, compute_);
    ops::rms_norm_backward({by_head(kept.before),
                            {weight.value, shape_.branch.norm_offset},
                            kept.inv_rms,
                            by_head(dheads)},
                           by_head(before), Write::overwrite, weight.gradient(compute_), compute_);
    copy(before, dprojection, compute_);
  }

  Tensor gated() const {
    Tensor gated(attended_.view().sizes(), dtype_, compute_);
    ops::sigmoid_gate(attended_, gate_, gated, compute_);
    return gated;
  }

  /// The fp32 tensor itself, or its copy in T.
  Tensor rounded(Tensor values) const {
    if (values.dtype() == dtype_) return values;
    Tensor copy(values.view().sizes(), dtype_, compute_);
    ops::cast(values, copy, compute_);
    return copy;
  }

  /// dout from dx, through output projection and gate, whose gradient takes the gate's place.
  void backward_after(ConstTensorView dx, TensorView dout) const {
    const Weights weights(store_, block_.group());
    const Weight o = weights.working(block_.o_);
    Tensor own;
    const ConstTensorView dbranch = block_.branch_.gradient(context_.resources, dx, own);
    {
      const Tensor gated = shape_.output_gate ? this->gated() : Tensor();
      o.add_product(ops::transposed(dbranch), as_rows(shape_.output_gate ? gated : attended_),
                    compute_);
    }
    ops::matmul(dbranch, o.value, as_rows(dout), Write::overwrite, compute_);
    if (shape_.output_gate) ops::sigmoid_gate_backward(attended_, gate_, dout, compute_);
  }

  /// Gradients of the projections.
  Tensor before_heads(Tensor dq, Tensor dk, Tensor dv) const {
    Tensor dprojections = heads_of_all();
    const Parts parts = parts_of(dprojections);
    place_backward(dq, block_.q_norm_, q_heads_, parts.q);
    place_backward(dk, block_.k_norm_, k_heads_, parts.k);
    copy(dv, parts.v, compute_);
    if (shape_.output_gate) copy(gate_, parts.gate, compute_);
    return dprojections;
  }

  /// Into dx, through projections and norm.
  void backward_before(const Tensor& dprojections, TensorView dx) const {
    const Weights weights(store_, block_.group());
    const Branch& branch = block_.branch_;
    const Tensor normed = branch.normed_again(context_.resources, input_, inv_rms_);
    const Tensor dnormed({rows(), shape_.branch.hidden}, DType::float32, compute_);
    const Weight qkv = weights.working(block_.q_, block_.v_);
    const TensorView gradients = as_rows(dprojections);
    qkv.add_product(ops::transposed(gradients), normed, compute_);
    ops::matmul(gradients, qkv.value, dnormed, Write::overwrite, compute_);
    branch.backward(context_.resources, input_, inv_rms_, dnormed, dx);
  }

  const AttentionBlock& block_;
  const AttentionShape& shape_;
  const DType dtype_;  // T
  const PassContext& context_;
  ParameterStore& store_;
  const runtime::Stream& compute_;
  const parallel::AttentionBatch& batch_;
  const attention::Scoring scoring_;
  Tensor inv_rms_;           // fp32[n]
  Heads q_heads_, k_heads_;  // with a norm of heads
  Tensor q_, k_, v_;         // T[n,H,D], T[n,H_kv,D] twice; q and k rotated
  Tensor gate_;              // T[n,H,D], with an output gate
  Tensor attended_;          // T[n,H,D], attention's out
  bool again_ = false;       // attended_ and lse_ are an earlier pass's
  Tensor lse_;               // fp32[n,H,2]
  parallel::AttentionKept kept_;
};

AttentionBlock::AttentionBlock(const AttentionShape& shape, std::size_t mask,
                               const BlockNames& names, int group, double stddev,
                               double residual_stddev, parallel::ParameterTable& table)
    : Block(group),
      shape_(shape),
      mask_(mask),
      branch_(shape.branch, names.norm, group, table),
      q_(names.prefix + "q_proj.weight"),
      k_(names.prefix + "k_proj.weight"),
      v_(names.prefix + "v_proj.weight"),
      o_(names.prefix + "o_proj.weight"),
      q_norm_(names.prefix + "q_norm.weight"),
      k_norm_(names.prefix + "k_norm.weight") {
  const std::int64_t h = shape.branch.hidden, queries = shape.heads * shape.head_dim,
                     keys = shape.kv_heads * shape.head_dim;
  using enum parallel::Initialisation;
  const std::int64_t q_rows = shape.output_gate ? 2 * queries : queries;
  table.add({q_, {q_rows, h}, normal, stddev, true, 0, group, {}});  // with k and v one matrix
  table.add({k_, {keys, h}, normal, stddev, true, 0, group, {}});
  table.add({v_, {keys, h}, normal, stddev, true, 0, group, {}});
  table.add({o_, {h, queries}, normal, residual_stddev, true, 1, group, {}});
  if (shape.qk_norm == QkNorm::none) return;
  const auto start = shape.branch.norm_offset == 0 ? ones : zeros;
  table.add({q_norm_, {shape.head_dim}, start, 0, false, -1, group, {}});
  table.add({k_norm_, {shape.head_dim}, start, 0, false, -1, group, {}});
}

std::unique_ptr<BlockPass> AttentionBlock::begin(const PassContext& context) const {
  return std::make_unique<Pass>(*this, context);
}

attention::Scoring AttentionBlock::scoring() const {
  return {.scale = static_cast<float>(
              shape_.scale.value_or(1.0 / std::sqrt(static_cast<double>(shape_.head_dim))))};
}

void AttentionBlock::prepare(const parallel::Attention& attention,
                             const parallel::Expression& scheme,
                             std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks,
                             Recompute) const {
  const AttentionCall call = *attention_call();
  attention.prepare(*masks[mask_], scheme, call.shapes, call.scoring);
}

std::optional<AttentionCall> AttentionBlock::attention_call() const {
  return AttentionCall{mask_,
                       {static_cast<int>(shape_.heads), static_cast<int>(shape_.kv_heads),
                        shape_.head_dim, shape_.head_dim, shape_.branch.dtype},
                       scoring()};
}

/// Forward: q, k and v (and the gate) twice, where the attention's out is not there yet; its out in
/// fp32 beside the call; the block's output, with the gated rows. Backward: dout in T, with the
/// gated rows and the branch's gradient; dout beside dq, dk, dv and delta in fp32 and the call;
/// then those three in T beside their fp32 ones; then the former, the normalised rows and their
/// gradient.
PassingBytes AttentionBlock::passing_bytes(std::int64_t rows,
                                           const parallel::CallBytes& call) const {
  const std::int64_t element = size_bytes(shape_.branch.dtype), wide = size_bytes(DType::float32);
  const std::int64_t queries = rows * shape_.heads * shape_.head_dim,
                     keys = rows * shape_.kv_heads * shape_.head_dim;
  const std::int64_t gates = shape_.output_gate ? queries : 0;
  const std::int64_t gradients = (queries + 2 * keys) * wide,
                     projections = (queries + gates + 2 * keys) * element,
                     before_norm = (shape_.qk_norm != QkNorm::none) ? queries * element : 0;
  PassingBytes bytes;
  bytes.forward = std::max({(gates + 2 * keys) * element, queries * wide + call.forward,
                            branch_.output_bytes(rows) + gates * element});
  bytes.exchange =
      std::max(queries * wide + call.forward,
               queries * element + gradients + rows * shape_.heads * wide + call.backward);
  bytes.backward = projections + std::max(gradients + before_norm, branch_.backward_bytes(rows));
  bytes.backward = std::max(
      {bytes.backward, bytes.exchange, (queries + gates) * element + branch_.gradient_bytes(rows)});
  return bytes;
}

/// What the branch keeps; q, k, v and the attention's out in T, in fp32 the LSE (two numbers); the
/// gate; q and k before their norm, and a number a head.
std::int64_t AttentionBlock::kept_bytes(std::int64_t rows) const {
  const std::int64_t normed = (shape_.qk_norm != QkNorm::none) ? shape_.heads + shape_.kv_heads : 0;
  const std::int64_t heads =
      2 * shape_.heads + 2 * shape_.kv_heads + normed + (shape_.output_gate ? shape_.heads : 0);
  return branch_.kept_bytes(rows) +
         rows * (heads * shape_.head_dim * size_bytes(shape_.branch.dtype) +
                 (2 * shape_.heads + normed) * size_bytes(DType::float32));
}

/// The attention's out and LSE, and what its scheme saves.
std::int64_t AttentionBlock::received_bytes(std::int64_t rows, const parallel::CallBytes& call,
                                            Recompute recompute) const {
  if (recompute != Recompute::selective) return 0;
  return call.kept +
         rows * shape_.heads *
             (shape_.head_dim * size_bytes(shape_.branch.dtype) + 2 * size_bytes(DType::float32));
}

/// Matrices: 6 per weight and token. Attention: Q K^T and P V forward (2 * 2), their four products
/// backward (4 * 2), D each per head and pair.
double AttentionBlock::flops(std::int64_t tokens, std::span<const std::int64_t> areas) const {
  const auto queries = static_cast<double>(shape_.heads * shape_.head_dim),
             keys = static_cast<double>(shape_.kv_heads * shape_.head_dim);
  const double weights = static_cast<double>(shape_.branch.hidden) *
                         ((shape_.output_gate ? 3 : 2) * queries + 2 * keys);
  return 6 * static_cast<double>(tokens) * weights +
         12 * static_cast<double>(areas[mask_]) * queries;
}

}  // namespace longhaul::models
