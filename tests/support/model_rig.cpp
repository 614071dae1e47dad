#include "tests/support/model_rig.h"

#include <limits>
#include <utility>

#include "runtime/comm/loopback.h"
#include "runtime/ops/matmul.h"
#include "tests/support/host_tensors.h"

namespace longhaul::test {

using models::ModelConfig;
using runtime::DType;
using runtime::Tensor;

ModelConfig small_config(bool tied, DType dtype) {
  ModelConfig config;
  config.hidden_size = 10;
  config.intermediate_size = 13;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 4;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 100;
  config.tie_word_embeddings = tied;
  config.vocab_size = 17;
  config.dtype = dtype;
  return config;
}

ModelConfig sliding_config(std::int64_t window) {
  ModelConfig config = small_config();
  config.num_hidden_layers = 3;
  config.layer_types = {"sliding_attention", "full_attention", "sliding_attention"};
  config.sliding_window = window;
  return config;
}

OracleBatch document_batch(const ModelConfig& config, const std::vector<std::int64_t>& lengths,
                           unsigned seed) {
  OracleBatch batch;
  std::uint64_t state = seed;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    for (std::int64_t position = 0; position < lengths[document]; ++position) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      batch.tokens.push_back(static_cast<std::int64_t>(
          (state >> 33) % static_cast<std::uint64_t>(*config.vocab_size)));
      batch.positions.push_back(position);
      batch.documents.push_back(static_cast<std::int64_t>(document));
    }
  }
  for (std::size_t row = 0; row < batch.tokens.size(); ++row) {
    const bool next =
        row + 1 < batch.tokens.size() && batch.documents[row + 1] == batch.documents[row];
    batch.labels.push_back(next ? batch.tokens[row + 1] : -1);
  }
  return batch;
}

Rig::Rig(models::Model made, DType dtype, std::unique_ptr<runtime::Communicator> communicator,
         int threads)
    : rank(communicator->rank()),
      ranks(communicator->size()),
      stream(runtime::Stream::cpu("compute", threads)),
      model(std::move(made)),
      store(model.table(), dtype, stream),
      attention({}, std::move(communicator), stream),
      resources{store, attention, stream} {
  // What no pass has written must not count.
  fill(store.gradients(), std::numeric_limits<double>::quiet_NaN(), stream);
  set_parameters();
}

void Rig::set_parameters() {
  unsigned seed = 1;
  for (const parallel::Parameter& parameter : store.table().parameters()) {
    std::vector<double> values = random_values(parameter.range.elements(), seed++, true);
    // Around what a factor begins with: one, or zero beside an offset.
    const bool one =
        parameter.sizes.size() == 1 && parameter.initialisation != parallel::Initialisation::zeros;
    for (double& value : values) value = one ? 1 + value / 2 : value / 2;
    const Tensor source = make_tensor(values, {parameter.range.elements()}, DType::float32, stream);
    copy(source, store.values().slice(0, parameter.range.begin, parameter.range.end), stream);
  }
  store.values_changed();
}

NamedValues Rig::parameters() const {
  NamedValues values;
  for (const parallel::Parameter& parameter : store.table().parameters()) {
    values[parameter.name] = read(store.value(parameter.name), stream);
  }
  return values;
}

NamedValues Rig::gradients() const {
  NamedValues values;
  for (const parallel::Parameter& parameter : store.table().parameters()) {
    values[parameter.name] = read(store.gradient(parameter.name), stream);
  }
  return values;
}

Tensor Rig::forward_backward(const models::Batch& batch, const models::PassOptions& options) {
  return std::move(model.forward_backward(resources, {&batch, 1}, options).front());
}

models::Evaluation Rig::evaluate(const models::Batch& batch) {
  return model.evaluate(resources, batch);
}

Tensor Rig::logits(const models::Batch& batch, std::int64_t begin, std::int64_t end) {
  return model.logits(resources, batch, begin, end);
}

models::Batch Rig::use(const OracleBatch& batch, parallel::LayoutKind kind) {
  const auto tokens = static_cast<std::int64_t>(batch.tokens.size());
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t row = 1; row <= tokens; ++row) {
    const auto r = static_cast<std::size_t>(row);
    if (row == tokens || batch.documents[r] != batch.documents[r - 1]) offsets.push_back(row);
  }
  std::vector<attention::Mask> masks;
  for (const models::MaskKind& layers : model.masks())
    masks.push_back(layers.of(attention::Mask::documents(offsets)));
  const auto layout = parallel::Layout::make(kind, masks_of_layers(masks, model.masks()), 1, ranks);
  const auto local = [&](const auto& values, DType dtype) {
    std::vector<double> mine;
    for (const std::int64_t token : layout.tokens_of(rank)) {
      mine.push_back(static_cast<double>(values[static_cast<std::size_t>(token)]));
    }
    batch_tensors_.push_back(
        make_tensor(mine, {static_cast<std::int64_t>(mine.size())}, dtype, stream));
    return runtime::ConstTensorView(batch_tensors_.back());
  };
  const runtime::ConstTensorView ids = local(batch.tokens, DType::int32),
                                 labels = local(batch.labels, DType::int32);
  models::Batch mine{ids, labels, local(batch.positions, DType::int32), {}};
  if (!batch.label_weights.empty()) mine.label_weights = local(batch.label_weights, DType::float32);
  for (const attention::Mask& mask : masks) mine.attention.push_back(attention.batch(mask, layout));
  return mine;
}

void with_rigs(int ranks, const std::function<models::Model()>& make, DType dtype,
               const std::function<void(Rig&)>& body, int threads) {
  runtime::run_loopback(ranks, {}, [&](std::unique_ptr<runtime::Communicator> world) {
    Rig rig(make(), dtype, std::move(world), threads);
    body(rig);
    rig.stream.synchronize(runtime::deadline_in(60));
  });
}

void with_rigs(int ranks, const ModelConfig& config, const models::ModelOptions& options,
               const std::function<void(Rig&)>& body, int threads) {
  with_rigs(
      ranks, [&] { return models::model_of(config, options); }, config.dtype, body, threads);
}

std::int64_t product_bytes(const models::Model& model, std::int64_t rows) {
  return runtime::ops::kSmallMatmulScratchBytes +
         runtime::ops::cpu_matmul_scratch_bytes(DType::float32, 1, rows * model.table().elements());
}

}  // namespace longhaul::test
