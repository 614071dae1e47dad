#include "models/llama.h"

#include <utility>

#include "runtime/ops/embedding.h"
#include "runtime/ops/rope.h"

namespace longhaul::models {

namespace ops = runtime::ops;
using runtime::DType;
using runtime::Tensor;

Llama::Llama(const LlamaConfig& config, const LlamaOptions& options, ParameterStore& store,
             parallel::Attention& attention, const runtime::Stream& compute)
    : config_(config),
      options_(options),
      store_(store),
      compute_(compute),
      head_(config, store, options.head_chunk_rows, compute) {
  check(config);
  LONGHAUL_CHECK(store.working_dtype() == config.dtype, "the parameter store works in ",
                 name(store.working_dtype()), ", the model in ", name(config.dtype));
  for (std::int64_t index = 0; index < config.num_hidden_layers; ++index) {
    layers_.push_back(std::make_unique<Layer>(config, store, index, attention, compute));
  }
}

RopeTables Llama::rope_tables(const Batch& batch) const {
  const std::int64_t n = batch.tokens.size(0), half = config_.head_dim / 2;
  RopeTables tables{Tensor({n, half}, DType::float32, compute_),
                    Tensor({n, half}, DType::float32, compute_)};
  ops::rope_table(batch.positions, config_.rope_theta, tables.cosines, tables.sines, compute_);
  return tables;
}

Tensor Llama::embed(const Batch& batch) const {
  Tensor hidden({batch.tokens.size(0), config_.hidden_size}, config_.dtype, compute_);
  ops::embedding(store_.value("model.embed_tokens.weight"), batch.tokens, hidden, compute_);
  return hidden;
}

Tensor Llama::forward_backward(const Batch& batch, const Pass& pass) {
  store_.refresh_working_copy(compute_);
  const auto complete = [&](int group) {
    if (pass.on_gradients) pass.on_gradients(store_.table().group_range(group));
  };

  const RopeTables rope = rope_tables(batch);
  Tensor hidden = embed(batch);
  std::vector<LayerActivations> activations(layers_.size());
  for (std::size_t index = 0; index < layers_.size(); ++index) {
    activations[index].input = std::move(hidden);
    layers_[index]->compute_activations(activations[index], rope);
    hidden = layers_[index]->output(activations[index]);
    if (options_.recompute == Recompute::full) activations[index].keep_input_only();
  }

  Tensor loss_sum({1}, DType::float64, compute_);
  fill(loss_sum, 0, compute_);
  const Tensor dhidden(hidden.view().sizes(), config_.dtype, compute_);
  head_.loss_and_backward(hidden, batch.labels, pass.loss_scale, loss_sum, dhidden);
  hidden = Tensor();
  complete(store_.table().groups() - 1);

  for (std::size_t index = layers_.size(); index-- > 0;) {
    if (options_.recompute == Recompute::full)
      layers_[index]->compute_activations(activations[index], rope);
    layers_[index]->backward(activations[index], rope, dhidden);
    activations[index] = {};
    complete(static_cast<int>(index) + 1);
  }

  if (pass.embedding_gradient.data() != nullptr) copy(dhidden, pass.embedding_gradient, compute_);
  ops::embedding_backward(dhidden, batch.tokens, store_.gradient("model.embed_tokens.weight"),
                          compute_);
  complete(0);
  return loss_sum;
}

Tensor Llama::forward_hidden(const Batch& batch) {
  store_.refresh_working_copy(compute_);
  const RopeTables rope = rope_tables(batch);
  Tensor hidden = embed(batch);
  for (const auto& layer : layers_) {
    LayerActivations activations;
    activations.input = std::move(hidden);
    layer->compute_activations(activations, rope);
    hidden = layer->output(activations);
  }
  return hidden;
}

Evaluation Llama::evaluate(const Batch& batch) {
  const std::int64_t n = batch.tokens.size(0);
  const Tensor hidden = forward_hidden(batch);
  Evaluation result{Tensor({1}, DType::float64, compute_), Tensor({n}, DType::float32, compute_),
                    Tensor({n}, DType::uint8, compute_)};
  fill(result.loss_sum, 0, compute_);
  head_.evaluate(hidden, batch.labels, result.loss_sum, result.row_loss, result.row_correct);
  return result;
}

Tensor Llama::logits(const Batch& batch, std::int64_t begin, std::int64_t end) {
  return head_.logits(forward_hidden(batch).view().slice(0, begin, end));
}

}  // namespace longhaul::models
