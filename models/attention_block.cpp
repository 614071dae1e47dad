#include "models/attention_block.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "attention/block.h"
#include "models/weights.h"
#include "runtime/ops/cast.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/rms_norm.h"
#include "runtime/ops/rope.h"
#include "runtime/ops/scaled.h"
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

/// The shape itself, if it means something.
const AttentionShape& checked(const AttentionShape& shape) {
  const bool softmax = shape.weighting == attention::Weighting::softmax;
  if (shape.sinks && !softmax) {
    fail(runtime::ExitCode::config,
         "sinks are part of a softmax's denominator; a sigmoid has none, so leave them out");
  }
  if (shape.bias != 0 && softmax) {
    fail(runtime::ExitCode::config, "bias ", shape.bias,
         " of scores: expected 0, it is for sigmoid attention only");
  }
  return shape;
}

/// Of q, k and v, which are one matrix in the table, by one name or three.
std::vector<ProjectionMatrix> qkv_matrices(const AttentionShape& shape, const std::string& prefix) {
  const std::int64_t q = shape.heads * shape.head_dim * (shape.output_gate ? 2 : 1),
                     keys = shape.kv_heads * shape.head_dim;
  if (shape.fused_qkv) return {{prefix + "qkv_proj.weight", q + 2 * keys}};
  return {{prefix + "q_proj.weight", q},
          {prefix + "k_proj.weight", keys},
          {prefix + "v_proj.weight", keys}};
}

}  // namespace

/// Before the call: norm, projections, norms of q and k, rotation. After it: sinks, gate,
/// projection, its norm and residual. The normalised and the gated rows are not kept: backward
/// redoes those cheap operations, bit for bit.
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
    attention_kept_.saved = std::move(received[2]);
  }

  Stages activate(Tensor input) override {
    input_ = std::move(input);
    before();
    if (!again_) {
      Tensor out({rows(), shape_.heads, shape_.head_dim}, DType::float32, compute_);
      if (block_.is_softmax()) lse_ = Tensor({rows(), shape_.heads, 2}, DType::float32, compute_);
      const auto call = context_.resources.attention.forward(batch_, q_, k_, v_, scoring_, out,
                                                             lse_, &attention_kept_);
      call->start();
      co_await in_flight;
      call->advance();
      co_await in_flight;
      call->finish();
      const Weights weights(store_, block_.group());
      if (shape_.sinks)
        attention::apply_sinks(out, lse_, weights.value(block_.sinks_).value, compute_);
      attended_ = rounded(std::move(out));
    }
    if (!block_.branch_.norms_after()) co_return;
    const Weights weights(store_, block_.group());
    const Tensor gated = this->gated();
    block_.branch_.project(context_.resources, projected(gated), Projection(weights, block_.o_),
                           kept_);
  }

  Tensor output() const override {
    const Branch& branch = block_.branch_;
    if (branch.norms_after()) return branch.output(context_.resources, input_, kept_);
    const Weights weights(store_, block_.group());
    const Tensor gated = this->gated();
    return branch.output(context_.resources, input_, kept_, projected(gated),
                         Projection(weights, block_.o_));
  }

  std::vector<Tensor> take_received(Recompute recompute) override {
    std::vector<Tensor> received;
    if (recompute != Recompute::selective) return received;
    received.push_back(std::move(attended_));
    received.push_back(std::move(lse_));
    received.push_back(std::move(attention_kept_.saved));
    return received;
  }

  Stages backward(TensorView dx) override {
    Tensor dout({rows(), shape_.heads, shape_.head_dim}, dtype_, compute_);
    backward_after(dx, dout);

    Tensor dq({rows(), shape_.heads, shape_.head_dim}, DType::float32, compute_);
    Tensor dk({rows(), shape_.kv_heads, shape_.head_dim}, DType::float32, compute_);
    Tensor dv({rows(), shape_.kv_heads, shape_.head_dim}, DType::float32, compute_);
    {
      const Tensor delta = delta_of(dout);
      const auto call = context_.resources.attention.backward(
          batch_, {q_, k_, v_, dout, lse_, delta, &attention_kept_}, scoring_, dq, dk, dv);
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
  /// What the norm of q or k keeps.
  struct Heads {
    Tensor before;   // T[n,H,D]
    Tensor inv_rms;  // fp32[n*H], of rows [n]
  };
  /// Of the projections T[n,.,D], in the order of their rows.
  struct Parts {
    TensorView q, gate, k, v;
  };

  std::int64_t rows() const { return input_.size(0); }

  /// q, k, v and the gate of the input.
  void before() {
    const Tensor all = projections();
    const Parts parts = parts_of(all);
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

  /// The projections of what f sees.
  Tensor projections() {
    const Weights weights(store_, block_.group());
    Tensor own;
    const ConstTensorView normed = block_.branch_.normed(context_.resources, input_, kept_, own);
    Tensor all = heads_of_all();
    Projection(weights, block_.qkv_).apply(normed, as_rows(all), compute_);
    return all;
  }

  void rotate(ConstTensorView heads, ops::Rotation rotation, TensorView rotated) const {
    const RopeTables& rope = context_.rope(shape_.rope);
    ops::rope(heads, rope.cosines, rope.sines, rotation, rotated, compute_);
  }
  /// Whether q and k are rotated right out of their projection.
  bool rotates_projections() const { return shape_.qk_norm == QkNorm::none && !shape_.output_gate; }

  /// [n,H,D] as the rows that a norm of q or k takes.
  TensorView normed_rows(const TensorView& heads) const {
    return shape_.qk_norm == QkNorm::head ? by_head(heads) : as_rows(heads);
  }

  /// q or k from its projection: normed and rotated.
  void place(ConstTensorView projection, const std::string& norm, Heads& kept, TensorView heads) {
    if (rotates_projections()) return rotate(projection, ops::Rotation::forward, heads);
    if (shape_.qk_norm != QkNorm::none) {
      const Weights weights(store_, block_.group());
      kept.before = Tensor(projection.sizes(), dtype_, compute_);
      copy(projection, kept.before, compute_);
      const TensorView rows = normed_rows(kept.before);
      kept.inv_rms = Tensor({rows.size(0)}, DType::float32, compute_);
      ops::rms_norm(rows, {weights.value(norm).value, shape_.branch.norm_offset},
                    shape_.branch.norm_eps, normed_rows(heads), kept.inv_rms, compute_);
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
    ops::rms_norm_backward({normed_rows(kept.before),
                            {weight.value, shape_.branch.norm_offset},
                            kept.inv_rms,
                            normed_rows(dheads)},
                           normed_rows(before), Write::overwrite, weight.gradient(compute_),
                           compute_);
    copy(before, dprojection, compute_);
  }

  /// What the gate leaves of the attention's out; empty without one.
  Tensor gated() const {
    if (!shape_.output_gate) return {};
    Tensor gated(attended_.view().sizes(), dtype_, compute_);
    ops::sigmoid_gate(attended_, gate_, gated, compute_);
    return gated;
  }
  /// What the output projection takes, T[n,H*D].
  TensorView projected(const Tensor& gated) const {
    return as_rows(shape_.output_gate ? gated : attended_);
  }

  /// The fp32 tensor itself, or its copy in T.
  Tensor rounded(Tensor values) const {
    if (values.dtype() == dtype_) return values;
    Tensor copy(values.view().sizes(), dtype_, compute_);
    ops::cast(values, copy, compute_);
    return copy;
  }

  /// dout from dx, through norm, output projection and gate, whose gradient takes the gate's place.
  void backward_after(ConstTensorView dx, TensorView dout) {
    const Weights weights(store_, block_.group());
    const Projection o(weights, block_.o_);
    Tensor own;
    const ConstTensorView dbranch = block_.branch_.gradient(context_.resources, dx, kept_, own);
    {
      const Tensor gated = this->gated();
      o.add_gradients(dbranch, projected(gated), compute_);
    }
    ops::matmul(dbranch, o.weight.value, as_rows(dout), Write::overwrite, compute_);
    if (shape_.output_gate) ops::sigmoid_gate_backward(attended_, gate_, dout, compute_);
  }

  /// What the call's backward takes beside dout, with the sinks' gradient; a sigmoid's is empty.
  Tensor delta_of(const Tensor& dout) const {
    if (!block_.is_softmax()) return {};
    Tensor delta({rows(), shape_.heads}, DType::float32, compute_);
    attention::block_delta(attended_, dout, delta, compute_);
    if (!shape_.sinks) return delta;
    const Weights weights(store_, block_.group());
    const Weight sinks = weights.value(block_.sinks_);
    const Tensor of_rows({shape_.heads}, DType::float32, compute_);
    attention::sinks_backward(lse_, delta, sinks.value, of_rows, compute_);
    ops::scaled(of_rows, 1, Write::add, sinks.gradient(compute_), compute_);
    return delta;
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
    const Projection qkv(weights, block_.qkv_);
    const TensorView gradients = as_rows(dprojections);
    Tensor own;
    qkv.add_gradients(gradients, branch.normed_again(context_.resources, input_, kept_, own),
                      compute_);
    const Tensor dnormed({rows(), shape_.branch.hidden}, DType::float32, compute_);
    ops::matmul(gradients, qkv.weight.value, dnormed, Write::overwrite, compute_);
    branch.backward(context_.resources, input_, kept_, dnormed, dx);
  }

  const AttentionBlock& block_;
  const AttentionShape& shape_;
  const DType dtype_;  // T
  const PassContext& context_;
  ParameterStore& store_;
  const runtime::Stream& compute_;
  const parallel::AttentionBatch& batch_;
  const attention::Scoring scoring_;
  BranchKept kept_;
  Heads q_heads_, k_heads_;  // with a norm of q and k
  Tensor q_, k_, v_;         // T[n,H,D], T[n,H_kv,D] twice; q and k rotated
  Tensor gate_;              // T[n,H,D], with an output gate
  Tensor attended_;          // T[n,H,D], attention's out, after the sinks
  bool again_ = false;       // attended_ and lse_ are an earlier pass's
  Tensor lse_;               // fp32[n,H,2], after the sinks; a sigmoid has none
  parallel::AttentionKept attention_kept_;
};

AttentionBlock::AttentionBlock(const AttentionShape& shape, std::size_t mask,
                               const BlockNames& names, int group, double stddev,
                               double residual_stddev, parallel::ParameterTable& table)
    : Block(group),
      shape_(checked(shape)),
      mask_(mask),
      branch_(shape.branch, names.norm, names.norm_after, group, table),
      qkv_(add_projection({shape.branch.hidden, shape.qkv_bias, stddev, 0, group},
                          qkv_matrices(shape, names.prefix), table)),
      o_(add_projection(
          {shape.heads * shape.head_dim, shape.o_bias, residual_stddev, 1, group},
          std::array{ProjectionMatrix{names.prefix + "o_proj.weight", shape.branch.hidden}},
          table)),
      q_norm_(names.prefix + "q_norm.weight"),
      k_norm_(names.prefix + "k_norm.weight"),
      sinks_(names.prefix + "sinks") {
  using enum parallel::Initialisation;
  if (shape.qk_norm != QkNorm::none) {
    const auto start = shape.branch.norm_offset == 0 ? ones : zeros;
    const bool of_row = shape.qk_norm == QkNorm::row;
    const std::int64_t q = of_row ? shape.heads : 1, k = of_row ? shape.kv_heads : 1;
    table.add({q_norm_, {q * shape.head_dim}, start, 0, false, -1, group, {}});
    table.add({k_norm_, {k * shape.head_dim}, start, 0, false, -1, group, {}});
  }
  if (shape.sinks) table.add({sinks_, {shape.heads}, normal, stddev, false, 0, group, {}});
}

std::unique_ptr<BlockPass> AttentionBlock::begin(const PassContext& context) const {
  return std::make_unique<Pass>(*this, context);
}

bool AttentionBlock::is_softmax() const {
  return shape_.weighting == attention::Weighting::softmax;
}

attention::Scoring AttentionBlock::scoring() const {
  return {.scale = static_cast<float>(
              shape_.scale.value_or(1.0 / std::sqrt(static_cast<double>(shape_.head_dim)))),
          .softcap = static_cast<float>(shape_.softcap),
          .weighting = shape_.weighting,
          .bias = static_cast<float>(shape_.bias)};
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
                        shape_.head_dim, shape_.head_dim, shape_.branch.dtype, shape_.weighting},
                       scoring()};
}

/// Forward: q, k and v (and the gate) twice, where the attention's out is not there yet; its out in
/// fp32 beside the call; the gated rows, beside the block's output unless a norm stands between.
/// What a norm behind the projection takes comes after the call and goes first. Backward: dout in T
/// with what makes the branch's gradient, then with that and the gated rows; dout beside dq, dk, dv
/// and delta in fp32 and the call; then those three in T beside their fp32 ones; then the former,
/// the normalised rows and their gradient.
PassingBytes AttentionBlock::passing_bytes(std::int64_t rows,
                                           const parallel::CallBytes& call) const {
  const std::int64_t element = size_bytes(shape_.branch.dtype), wide = size_bytes(DType::float32);
  const std::int64_t queries = rows * shape_.heads * shape_.head_dim,
                     keys = rows * shape_.kv_heads * shape_.head_dim;
  const std::int64_t gates = shape_.output_gate ? queries : 0,
                     delta = is_softmax() ? rows * shape_.heads * wide : 0;
  const std::int64_t gradients = (queries + 2 * keys) * wide,
                     projections = (queries + gates + 2 * keys) * element,
                     before_norm = shape_.qk_norm == QkNorm::none ? 0 : queries * element,
                     released = branch_.released_bytes(rows);
  const std::int64_t forward_call = queries * wide + call.forward - released;
  PassingBytes bytes;
  bytes.forward = std::max({(gates + 2 * keys) * element - released, forward_call,
                            branch_.output_bytes(rows, gates * element)});
  bytes.exchange =
      std::max(forward_call, queries * element + gradients + delta + call.backward - released);
  bytes.backward = std::max(
      {bytes.exchange, queries * element + branch_.gradient_bytes(rows),
       (queries + gates) * element + branch_.own_bytes(rows) - released,
       projections + std::max(gradients + before_norm, branch_.backward_bytes(rows)) - released});
  return bytes;
}

/// What the branch keeps; q, k, v and the attention's out in T, in fp32 the LSE (two numbers); the
/// gate; q and k before their norm, and a number a head or row.
std::int64_t AttentionBlock::kept_bytes(std::int64_t rows) const {
  const std::int64_t normed = shape_.qk_norm == QkNorm::none ? 0 : shape_.heads + shape_.kv_heads;
  const std::int64_t norms = shape_.qk_norm == QkNorm::row ? 2 : normed;
  const std::int64_t heads =
      2 * shape_.heads + 2 * shape_.kv_heads + normed + (shape_.output_gate ? shape_.heads : 0);
  return branch_.kept_bytes(rows) + lse_bytes(rows) +
         rows * (heads * shape_.head_dim * size_bytes(shape_.branch.dtype) +
                 norms * size_bytes(DType::float32));
}

std::int64_t AttentionBlock::lse_bytes(std::int64_t rows) const {
  return is_softmax() ? rows * shape_.heads * 2 * size_bytes(DType::float32) : 0;
}

/// The attention's out and LSE, and what its scheme saves.
std::int64_t AttentionBlock::received_bytes(std::int64_t rows, const parallel::CallBytes& call,
                                            Recompute recompute) const {
  if (recompute != Recompute::selective) return 0;
  return call.kept + lse_bytes(rows) +
         rows * shape_.heads * shape_.head_dim * size_bytes(shape_.branch.dtype);
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
