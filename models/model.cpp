#include "models/model.h"

#include <algorithm>
#include <iterator>
#include <ranges>
#include <utility>

#include "models/weights.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/rope.h"
#include "runtime/ops/scaled.h"
#include "runtime/purpose.h"
#include "runtime/trace_range.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using parallel::Direction;
using runtime::DType;
using runtime::Tensor;

namespace {
constexpr const char* kActivationRemedy =
    "take a shorter sequence or smaller micro-batch, recompute activations, or spread a sequence "
    "over "
    "more ranks";
}

Model::Model(ModelParts parts, const ModelOptions& options)
    : parts_(std::move(parts)),
      recompute_(options.recompute),
      head_(parts_.head, parts_.table, options.head_chunk_rows) {
  for (std::size_t index = 0; index < parts_.blocks.size(); ++index) {
    const int group = parts_.blocks[index]->group();
    if (layers_.empty() || layers_.back().group != group) layers_.push_back({index, index, group});
    layers_.back().end = index + 1;
    const auto call = parts_.blocks[index]->attention_call();
    call_of_block_.emplace_back();
    if (!call) continue;
    const auto found = std::ranges::find(calls_, *call);
    call_of_block_.back() = static_cast<std::size_t>(found - calls_.begin());
    if (found == calls_.end()) calls_.push_back(*call);
  }
}

void Model::prepare(const parallel::Attention& attention, const parallel::Expression& scheme,
                    std::span<const std::shared_ptr<const parallel::AttentionBatch>> masks) const {
  for (const auto& block : parts_.blocks) block->prepare(attention, scheme, masks, recompute_);
}

double Model::flops(std::int64_t tokens, std::span<const std::int64_t> areas) const {
  double sum = head_.flops(tokens);
  for (const auto& block : parts_.blocks) sum += block->flops(tokens, areas);
  return sum;
}

std::int64_t Model::activation_bytes(std::int64_t rows) const {
  // Of all layers, and by how much the layer of most exceeds what it keeps meanwhile.
  std::int64_t all = 0, begun_again = 0, more = 0;
  const std::int64_t input = rows * parts_.hidden * size_bytes(parts_.dtype);
  for (const Layer& layer : layers_) {
    std::int64_t kept = 0, between = input;
    for (std::size_t block = layer.begin; block < layer.end; ++block) {
      kept += parts_.blocks[block]->kept_bytes(rows);
      between += parts_.blocks[block]->received_bytes(rows, {}, recompute_);
    }
    all += kept;
    begun_again += between;
    more = std::max(more, kept - between);
  }
  return recompute_ == Recompute::none ? all : begun_again + more;
}

parallel::CallBytes Model::call_of(std::size_t block,
                                   std::span<const parallel::CallBytes> calls) const {
  return call_of_block_[block] ? calls[*call_of_block_[block]] : parallel::CallBytes();
}

std::vector<PassCall> Model::forward_calls(const Layer& layer, bool kept) const {
  std::vector<PassCall> calls;
  for (std::size_t block = layer.begin; block < layer.end; ++block) {
    if (call_of_block_[block] && !calls_[*call_of_block_[block]].shapes.linear)
      calls.push_back({*call_of_block_[block], Direction::forward, kept});
  }
  return calls;
}

std::vector<PassCall> Model::evaluation_calls() const {
  std::vector<PassCall> calls;
  for (const Layer& layer : layers_)
    std::ranges::copy(forward_calls(layer, false), std::back_inserter(calls));
  return calls;
}

std::vector<PassCall> Model::training_calls() const {
  const bool again = recompute_ == Recompute::full;
  std::vector<PassCall> calls;
  for (const Layer& layer : layers_)
    std::ranges::copy(forward_calls(layer, !again), std::back_inserter(calls));
  for (const Layer& layer : std::views::reverse(layers_)) {
    const std::vector<PassCall> forward = forward_calls(layer, true);
    if (again) std::ranges::copy(forward, std::back_inserter(calls));
    for (const PassCall& call : std::views::reverse(forward))
      calls.push_back({call.call, Direction::backward});
  }
  return calls;
}

std::int64_t Model::pass_bytes(std::int64_t rows, std::span<const parallel::CallBytes> calls,
                               std::int64_t together) const {
  const std::int64_t hidden = rows * parts_.hidden * size_bytes(parts_.dtype);
  const std::int64_t others = together - 1;
  const bool again = recompute_ != Recompute::none;
  const auto received_of = [&](std::size_t block) {
    return parts_.blocks[block]->received_bytes(rows, call_of(block, calls), recompute_);
  };
  const auto kept_of = [&](std::size_t block) {
    return parts_.blocks[block]->kept_bytes(rows) + call_of(block, calls).kept;
  };
  const auto passing_of = [&](std::size_t block) {
    return parts_.blocks[block]->passing_bytes(rows, call_of(block, calls));
  };
  // What all passes keep when each has gone through the model: everything, or the layers' inputs
  // and what was received.
  std::int64_t all = again ? std::ssize(layers_) * hidden : 0;
  for (std::size_t block = 0; block < parts_.blocks.size(); ++block)
    all += again ? received_of(block) : kept_of(block);
  std::int64_t most = together * (all + hidden) + hidden + head_.passing_bytes(rows);
  // Backward, from the last layer on; with recomputation a layer is there in full for its turn.
  std::int64_t kept = all;
  for (std::size_t index = layers_.size(); index-- > 0;) {
    const Layer& layer = layers_[index];
    if (again) {
      kept -= hidden;
      for (std::size_t block = layer.begin; block < layer.end; ++block) {
        kept += kept_of(block) - received_of(block);
        most = std::max(most, together * (kept + hidden) + passing_of(block).forward);
      }
    }
    for (std::size_t block = layer.end; block-- > layer.begin;) {
      const PassingBytes passing = passing_of(block);
      const std::int64_t passed = kept + hidden;  // with dx
      most = std::max({most, together * passed + passing.backward + others * passing.exchange});
      kept -= kept_of(block);
    }
  }
  // Tokens, labels, their weights and positions, and the rotations' cosines and sines of them.
  std::int64_t turned = 0;
  for (const Rope& rope : parts_.ropes) turned += rope.dims;
  const std::int64_t fixed =
      rows * (4 * size_bytes(DType::int32) + turned * size_bytes(DType::float32));
  return most + together * fixed;
}

void Model::check(const Resources& resources, const Batch& batch) const {
  LONGHAUL_CHECK(resources.store.working_dtype() == parts_.dtype, "the parameter store works in ",
                 name(resources.store.working_dtype()), ", the model in ", name(parts_.dtype));
  LONGHAUL_CHECK(batch.attention.size() == parts_.masks.size(), "a batch with ",
                 batch.attention.size(), " masks, for a model with ", parts_.masks.size());
}

PassContext Model::context(const Resources& resources, const Batch& batch) const {
  check(resources, batch);
  const auto tables = [&](const Rope& rope) {
    const std::int64_t n = batch.tokens.size(0), half = rope.dims / 2;
    RopeTables made{Tensor({n, half}, DType::float32, resources.compute),
                    Tensor({n, half}, DType::float32, resources.compute)};
    ops::rope_table(batch.positions, rope.frequencies, rope.attention_factor, made.cosines,
                    made.sines, resources.compute);
    return made;
  };
  PassContext pass{resources, batch, {}, tables({})};
  for (const Rope& rope : parts_.ropes) pass.ropes.push_back(tables(rope));
  return pass;
}

void Model::multiply_embedding(runtime::TensorView rows, const runtime::Stream& compute) const {
  if (parts_.embedding_multiplier != 1)
    ops::scaled(rows, parts_.embedding_multiplier, ops::Write::overwrite, rows, compute);
}

Tensor Model::embed(const Resources& resources, const Batch& batch) const {
  const Weights weights(resources.store, 0);
  Tensor hidden({batch.tokens.size(0), parts_.hidden}, parts_.dtype, resources.compute);
  ops::embedding(weights.value(parts_.embedding).value, batch.tokens, hidden, resources.compute);
  multiply_embedding(hidden, resources.compute);
  return hidden;
}

/// All that the layer's blocks need for output and backward, from the input of the first.
Stages Model::activate(const PassContext& context, const Layer& layer, Tensor input,
                       BlockPasses& passes, std::vector<std::vector<Tensor>>* received) const {
  for (std::size_t index = layer.begin; index < layer.end; ++index) {
    passes[index] = parts_.blocks[index]->begin(context);
    if (received != nullptr) passes[index]->receive(std::move((*received)[index]));
    Stages block = passes[index]->activate(std::move(input));
    while (block.advance()) co_await in_flight;
    if (index + 1 < layer.end) input = passes[index]->output();
  }
}

/// Goes on to the next stage of a layer; what it allocates is in the layer's name.
bool advance(Stages& stages, const char* what, std::size_t layer) {
  const runtime::Purpose purpose(what, static_cast<std::int64_t>(layer), kActivationRemedy);
  const runtime::TraceRange trace(what, static_cast<std::int64_t>(layer));
  return stages.advance();
}

/// One pass, in order. It completes groups of gradients when it is the `last` to add to them: what
/// no row of theirs has reached is then zero.
Stages Model::forward_backward(const Resources& resources, const Batch& batch,
                               const PassOptions& options, bool last, Tensor& loss_sum) const {
  const runtime::Stream& compute = resources.compute;
  const auto complete = [&](int group) {
    if (!last) return;
    const parallel::ElementRange range = table().group_range(group);
    resources.store.zero_unwritten(range, compute);
    if (options.on_gradients) options.on_gradients(range);
  };

  const PassContext pass = context(resources, batch);
  Tensor hidden = embed(resources, batch);
  BlockPasses passes(parts_.blocks.size());
  std::vector<Tensor> inputs(layers_.size());  // of layers to compute again
  std::vector<std::vector<Tensor>> received(parts_.blocks.size());
  for (std::size_t index = 0; index < layers_.size(); ++index) {
    const Layer& layer = layers_[index];
    Stages forward = activate(pass, layer, std::move(hidden), passes, nullptr);
    while (advance(forward, "activations of layer", index)) co_await in_flight;
    hidden = passes[layer.end - 1]->output();
    if (recompute_ == Recompute::none) continue;
    for (std::size_t block = layer.begin; block < layer.end; ++block)
      received[block] = passes[block]->take_received(recompute_);
    inputs[index] = passes[layer.begin]->take_input();
    for (std::size_t block = layer.begin; block < layer.end; ++block) passes[block].reset();
  }

  loss_sum = Tensor({1}, DType::float64, compute);
  fill(loss_sum, 0, compute);
  const Tensor dhidden(hidden.view().sizes(), parts_.dtype, compute);
  {
    const runtime::Purpose purpose("the head and its logits", kActivationRemedy);
    const runtime::TraceRange trace("head");
    head_.loss_and_backward(resources, hidden, {batch.labels, batch.label_weights},
                            options.loss_scale, loss_sum, dhidden);
  }
  hidden = Tensor();
  complete(table().groups() - 1);

  for (std::size_t index = layers_.size(); index-- > 0;) {
    const Layer& layer = layers_[index];
    if (recompute_ != Recompute::none) {
      Stages again = activate(pass, layer, std::move(inputs[index]), passes, &received);
      while (advance(again, "activations of layer", index)) co_await in_flight;
    }
    for (std::size_t block = layer.end; block-- > layer.begin;) {
      Stages backward = passes[block]->backward(dhidden);
      while (advance(backward, "backward of layer", index)) co_await in_flight;
      passes[block].reset();
    }
    complete(layer.group);
  }

  if (batch.embedding_gradient.data() != nullptr) copy(dhidden, batch.embedding_gradient, compute);
  multiply_embedding(dhidden, compute);
  const Weights weights(resources.store, 0);
  ops::embedding_backward(dhidden, batch.tokens, weights.value(parts_.embedding).gradient(compute),
                          compute);
  complete(0);
}

std::vector<Tensor> Model::forward_backward(const Resources& resources,
                                            std::span<const Batch> batches,
                                            const PassOptions& options) const {
  resources.store.refresh_working_copy(resources.compute);
  std::vector<Tensor> loss_sums(batches.size());
  std::vector<Stages> passes;
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const bool last = i + 1 == batches.size();
    passes.push_back(forward_backward(resources, batches[i], options, last, loss_sums[i]));
  }
  // All passes have the same stages.
  const runtime::Purpose purpose("a pass of the model", kActivationRemedy);
  for (bool more = true; more;) {
    more = false;
    for (Stages& pass : passes) more |= pass.advance();
  }
  return loss_sums;
}

Tensor Model::forward(const Resources& resources, const Batch& batch) const {
  resources.store.refresh_working_copy(resources.compute);
  const PassContext pass = context(resources, batch);
  Tensor hidden = embed(resources, batch);
  BlockPasses passes(parts_.blocks.size());
  for (const Layer& layer : layers_) {
    Stages forward = activate(pass, layer, std::move(hidden), passes, nullptr);
    while (forward.advance()) continue;
    hidden = passes[layer.end - 1]->output();
    for (std::size_t block = layer.begin; block < layer.end; ++block) passes[block].reset();
  }
  return hidden;
}

Evaluation Model::evaluate(const Resources& resources, const Batch& batch) const {
  const std::int64_t n = batch.tokens.size(0);
  const runtime::Stream& compute = resources.compute;
  const Tensor hidden = forward(resources, batch);
  Evaluation result{Tensor({1}, DType::float64, compute), Tensor({n}, DType::float32, compute),
                    Tensor({n}, DType::uint8, compute)};
  fill(result.loss_sum, 0, compute);
  head_.evaluate(resources, hidden, {batch.labels, batch.label_weights}, result.loss_sum,
                 result.row_loss, result.row_correct);
  return result;
}

Tensor Model::logits(const Resources& resources, const Batch& batch, std::int64_t begin,
                     std::int64_t end) const {
  return head_.logits(resources, forward(resources, batch).view().slice(0, begin, end));
}

}  // namespace longhaul::models
