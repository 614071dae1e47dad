#include "models/serving.h"

#include "models/stages.h"
#include "runtime/purpose.h"

namespace longhaul::models {

using parallel::Direction;
using runtime::DType;
using runtime::Stream;
using runtime::Tensor;

namespace {

/// Tensors of a call's shape without rows.
struct NoRows {
  NoRows(const parallel::Shapes& shapes, const Stream& compute)
      : q({0, shapes.heads, shapes.dim}, shapes.activation, compute),
        k({0, shapes.kv_heads, shapes.dim}, shapes.activation, compute),
        v({0, shapes.kv_heads, shapes.value_dim}, shapes.activation, compute),
        dout({0, shapes.heads, shapes.value_dim}, shapes.activation, compute),
        out({0, shapes.heads, shapes.value_dim}, DType::float32, compute),
        dq({0, shapes.heads, shapes.dim}, DType::float32, compute),
        dk({0, shapes.kv_heads, shapes.dim}, DType::float32, compute),
        dv({0, shapes.kv_heads, shapes.value_dim}, DType::float32, compute) {
    if (shapes.weighting != attention::Weighting::softmax) return;
    lse = Tensor({0, shapes.heads, 2}, DType::float32, compute);
    delta = Tensor({0, shapes.heads}, DType::float32, compute);
  }
  Tensor q, k, v, dout, out, dq, dk, dv;
  Tensor lse, delta;  // of a softmax
};

/// One pass; the stages of a call are those of AttentionBlock.
Stages serve(const Model& model, std::vector<PassCall> calls, parallel::Attention& attention,
             const ServedBatch& batch, const Stream& compute) {
  std::vector<parallel::AttentionKept> kept;  // the last is the next backward's
  for (const PassCall& pass_call : calls) {
    const AttentionCall& call = model.attention_calls()[pass_call.call];
    const parallel::AttentionBatch& masks = *batch.at(call.mask);
    const NoRows rows(call.shapes, compute);
    const bool forward = pass_call.direction == Direction::forward;
    if (forward) kept.emplace_back();
    const auto execution =
        forward
            ? attention.forward(masks, rows.q, rows.k, rows.v, call.scoring, rows.out, rows.lse,
                                &kept.back())
            : attention.backward(
                  masks, {rows.q, rows.k, rows.v, rows.dout, rows.lse, rows.delta, &kept.back()},
                  call.scoring, rows.dq, rows.dk, rows.dv);
    execution->start();
    co_await in_flight;
    execution->advance();
    co_await in_flight;
    execution->finish();
    if (!forward || !pass_call.kept) kept.pop_back();
  }
}

/// In turns, as Model::forward_backward() advances its passes.
void take_turns(std::vector<Stages> passes) {
  const runtime::Purpose purpose("tasks of attention");
  for (bool more = true; more;) {
    more = false;
    for (Stages& pass : passes) more |= pass.advance();
  }
}

}  // namespace

void serve_training(const Model& model, parallel::Attention& attention,
                    std::span<const ServedBatch> batches, const Stream& compute) {
  std::vector<Stages> passes;
  for (const ServedBatch& batch : batches)
    passes.push_back(serve(model, model.training_calls(), attention, batch, compute));
  take_turns(std::move(passes));
}

void serve_evaluation(const Model& model, parallel::Attention& attention, const ServedBatch& batch,
                      const Stream& compute) {
  std::vector<Stages> passes;
  passes.push_back(serve(model, model.evaluation_calls(), attention, batch, compute));
  take_turns(std::move(passes));
}

}  // namespace longhaul::models
